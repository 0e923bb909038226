/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The outbound rows of the contract, O1 to O11 and udp443, in their order: the first that matches decides. */
#ifndef OUTBOUND_H
#define OUTBOUND_H

#include "lookups.h"

#define DNS   53
#define HTTPS 443

#define ECONNREFUSED 111 /* asm-generic/errno.h */

enum verdict { PASS, TO_INBOUND, TO_OUTBOUND, TO_DNS, REJECT };

/* One connection, or one datagram. */
struct flow {
	struct address to;
	struct address from; /* any: the kernel chooses, and `source` tells what it will */
	struct address source;
	__u32 mark;
	__u16 port; /* host order */
	bool tcp;
};

/* O4: the proxy calls its own pod. */
INLINE bool self_call(const struct policy *p, const struct flow *f, __u32 to)
{
	if (!f->tcp || !(p->flags & SELF_CALLS) || !(to & STAYS) || to & LOOPBACK_CIDR)
		return false;
	/* The proxy's tunnel and its DNS never meet inbound policy. */
	return f->port != p->tunnel_port && !(p->flags & DNS_ANY && f->port == DNS);
}

INLINE bool captures_dns(const struct policy *p, const struct flow *f, __u32 to)
{
	return f->port == DNS && to & DNS_SERVER && p->flags & (f->tcp ? DNS_TCP : DNS_UDP);
}

/* O1 to O3, if one of them is it. */
INLINE enum row excluded(const struct policy *p, const struct flow *f, __u32 to, const struct fact *port,
			 __u32 uid)
{
	__u64 rules = exclusions_of(port) & (f->tcp ? p->tcp_exclusions : p->udp_exclusions);

	if (to & BY_EXCLUDED)
		return O1;
	if (bits_of(port) & EXCLUDE_OUT)
		return O2;
	if (rules && rules & exclusions_of(number_fact(p, FACT_UID, 32, uid)))
		return O2;
	if (bits_of(address_fact(p, &f->source)) & PASSTHROUGH)
		return O3;
	return p->flags & TPROXY && f->mark == p->tproxy_mark ? O3 : NO_ROW;
}

/* Which row it is. */
INLINE enum row outbound_row(const struct policy *p, struct flow *f)
{
	__u64 id = bpf_get_current_uid_gid();
	const struct fact *destination = address_fact(p, &f->to);
	const struct fact *port = number_fact(p, FACT_PORT, 16, f->port);
	__u32 to = bits_of(destination), gid;
	enum row row;

	f->source = f->from;
	if (is_any(&f->from) && destination)
		f->source = destination->source;
	row = excluded(p, f, to, port, id);
	if (row != NO_ROW)
		return row;
	gid = bits_of(number_fact(p, FACT_GID, 32, id >> 32));
	if (gid & PROXY || bits_of(number_fact(p, FACT_UID, 32, id)) & PROXY)
		return self_call(p, f, to) ? O4 : O5;
	if (gid & EXCLUDE_OUT || (!(p->flags & ALL_GIDS) && !(gid & INCLUDE_OUT)))
		return O5;
	if (captures_dns(p, f, to))
		return O6;
	if (to & LOOPBACK_CIDR || (to & STAYS && !(p->flags & INCLUDE_LOOPBACK)))
		return O7;
	if (to & EXCLUDE_OUT)
		return O8;
	row = bits_of(port) & INCLUDE_OUT ? O9 : to & INCLUDE_OUT ? O10 : O11;
	if (f->tcp || row == O11)
		return row;
	return f->port == HTTPS && p->flags & REJECT_QUIC ? UDP443 : O11;
}

INLINE enum verdict outbound(const struct policy *p, struct flow *f)
{
	enum row row = outbound_row(p, f);

	count(p, row);
	switch (row) {
	case O4:
		return TO_INBOUND;
	case O6:
		return TO_DNS;
	case O9:
	case O10:
		return TO_OUTBOUND;
	case UDP443:
		return REJECT;
	default:
		return PASS;
	}
}

/* Of UDP nothing but DNS and QUIC is ever touched. */
INLINE bool concerns(const struct policy *p, const struct flow *f)
{
	if (!(p->flags & ON_OUTBOUND) || !programmed(p, &f->to))
		return false;
	return f->tcp || (f->port == DNS && p->flags & DNS_UDP) ||
	       (f->port == HTTPS && p->flags & REJECT_QUIC);
}

/* Where the proxy's listener for `verdict` is: an address of the family of `to`, and a port. */
INLINE __u16 listener(const struct policy *p, enum verdict verdict, const struct address *to,
		      struct address *at)
{
	if (verdict == TO_DNS) {
		*at = is_ipv4(to) ? p->dns[0] : p->dns[1];
		return p->dns_port;
	}
	*at = is_ipv4(to) ? ipv4(bpf_htonl(0x7f000001)) : (struct address){.word = {0, 0, 0, bpf_htonl(1)}};
	return verdict == TO_INBOUND ? p->inbound_port : p->outbound_port;
}

/* What a program of connect(2) or sendmsg(2) returns for REJECT. */
INLINE int refused(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

#endif
