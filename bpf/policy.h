/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What user space tells the programs about a sandbox. cni_plugin/backends/policy.py has its mirrors. */
#ifndef POLICY_H
#define POLICY_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define AF_INET  2
#define AF_INET6 10

/* Network order; IPv4 is ::ffff:a.b.c.d, so one key and one path serve both. */
struct address {
	__u32 word[4];
};

/* policy.flags */
#define ON_IPV4          (1 << 0)
#define ON_IPV6          (1 << 1)
#define ON_INBOUND       (1 << 2)
#define ON_OUTBOUND      (1 << 3)
#define TPROXY           (1 << 4) /* the proxy marks what it hands on */
#define SELF_CALLS       (1 << 5)
#define INCLUDE_LOOPBACK (1 << 6)
#define DNS_TCP          (1 << 7)
#define DNS_UDP          (1 << 8)
#define DNS_ANY          (1 << 9) /* some server is captured, by some protocol */
#define REJECT_QUIC      (1 << 10)
#define ALL_GIDS         (1 << 11) /* no gid is left out */

struct policy {
	__u64 cookie;         /* of the netns: tells a reader that an element was reused under its hands */
	__u64 cgroup;         /* id of the cgroup whose links serve this sandbox */
	__u64 tcp_exclusions; /* per-uid exclusions of ports, a bit each, by protocol */
	__u64 udp_exclusions;
	__u32 generation; /* of its facts */
	__u32 flags;
	__u32 tproxy_mark;
	__u16 inbound_port; /* ports are in host order */
	__u16 outbound_port;
	__u16 dns_port;
	__u16 tunnel_port;     /* 0: none */
	struct address dns[2]; /* where captured DNS goes: IPv4's and IPv6's */
};

/* What is known of one address, port, id or interface: key and value of `facts`. */
#define FACT_ADDRESS   1
#define FACT_PORT      2
#define FACT_UID       3
#define FACT_GID       4
#define FACT_INTERFACE 5
/* Of cookie and kind, which are compared whole. */
#define KIND_BITS 96

struct fact_key {
	__u32 length; /* in bits */
	__u32 cookie[2];
	__u32 kind;    /* big endian, generation << 8 | FACT_* */
	__u32 data[4]; /* big endian */
};

/* fact.bits */
#define EXCLUDE_OUT   (1 << 0)
#define INCLUDE_OUT   (1 << 1)
#define EXCLUDE_IN    (1 << 2)
#define INCLUDE_IN    (1 << 3)
#define PROXY         (1 << 4) /* an owner */
#define LOOPBACK_CIDR (1 << 5)
#define DNS_SERVER    (1 << 6)
#define PASSTHROUGH   (1 << 7)
#define STAYS         (1 << 8) /* 127/8, ::1, an address of the sandbox's own */
#define BY_EXCLUDED   (1 << 9) /* leaves by an excluded interface */

struct fact {
	__u64 exclusions; /* per-uid exclusions that name this uid, or this port */
	__u32 bits;
	__u32 pad;
	struct address source; /* which of its addresses the sandbox has when it goes there */
};

/* Rows of the contract, as they are counted. */
enum row { NO_ROW, O1, O2, O3, O4, O5, O6, O7, O8, O9, O10, O11, UDP443, I1, I2, I3, I4, I5, ROWS };

/* One CPU's, of one sandbox. */
struct hits {
	__u64 of[ROWS];
};

#endif
