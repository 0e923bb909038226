/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The inbound rows of the contract, I1 to I5: who arrives gets a listener of the proxy's. No packet is
 * changed. */
#include "lookups.h"

/* There is no bpf_get_netns_cookie in these programs, so this one is loaded for each sandbox. */
volatile const __u64 netns_cookie;

/* From the sandbox itself. Over loopback too it comes by the interface that has its address. */
INLINE bool from_inside(const struct policy *p, const struct address *from, const struct address *to)
{
	return is_loopback(from) || equal(from, to) || bits_of(address_fact(p, from)) & STAYS;
}

/* In tproxy mode the proxy hands on what it has under its client's address; sockops.c tells of each. */
INLINE bool handed_on(struct bpf_sk_lookup *ctx, const struct address *from)
{
	struct handshake key = {
	    .cookie = netns_cookie,
	    .client = *from,
	    .client_port = bpf_ntohs(ctx->remote_port),
	    .port = ctx->local_port,
	};

	return bpf_map_lookup_elem(&handshakes, &key);
}

/* None: what the table is not about, or has judged before. */
INLINE enum row inbound_row(struct bpf_sk_lookup *ctx, const struct policy *p)
{
	struct address from = BY_FAMILY(ctx->family, ctx->remote_ip4, ctx->remote_ip6);
	struct address to = BY_FAMILY(ctx->family, ctx->local_ip4, ctx->local_ip6);
	__u32 port;

	if (!programmed(p, &to) || from_inside(p, &from, &to))
		return NO_ROW;
	if (p->flags & TPROXY && handed_on(ctx, &from))
		return NO_ROW;
	if (bits_of(number_fact(p, FACT_INTERFACE, 32, ctx->ingress_ifindex)) & EXCLUDE_IN)
		return I1;
	if (bits_of(address_fact(p, &from)) & EXCLUDE_IN)
		return I2;
	port = ctx->local_port;
	if (p->tunnel_port && port == p->tunnel_port)
		return I3;
	port = bits_of(number_fact(p, FACT_PORT, 16, port));
	if (port & EXCLUDE_IN)
		return I3;
	return port & INCLUDE_IN ? I4 : I5;
}

struct offer {
	struct bpf_sk_lookup *ctx;
	__u32 port;
	__u32 taken; /* no bool: clang would return it unchecked */
};

static long offer_to(__u32 slot, struct offer *offer)
{
	struct listened key = {.cookie = netns_cookie, .port = offer->port, .slot = slot};
	struct bpf_sock *sk = bpf_map_lookup_elem(&listeners, &key);
	long error;

	if (!sk)
		return 0;
	/* Refused for a listener of the other family. Of a group any member will do: the kernel chooses again
	 * among all of it.
	 */
	error = bpf_sk_assign(offer->ctx, sk, 0);
	bpf_sk_release(sk);
	if (error)
		return 0;
	offer->taken = 1;
	return 1;
}

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
	struct offer offer = {.ctx = ctx};
	struct policy p;
	enum row row;

	if (ctx->protocol != IPPROTO_TCP || !policy_of(netns_cookie, &p) || !(p.flags & ON_INBOUND))
		return SK_PASS;
	row = inbound_row(ctx, &p);
	count(&p, row);
	if (row != I4)
		return SK_PASS;
	offer.port = p.inbound_port;
	/* Of a plain loop the verifier follows every round, 2 ms of each ADD. */
	bpf_loop(SLOTS, offer_to, &offer, 0);
	/* Nobody listens: the kernel answers with a reset, where the application would have been reached. */
	return offer.taken ? SK_PASS : SK_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
