/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The maps every program of the node shares, pinned by name. Sizes are limits, not memory, but for
 * `handshakes`, which lives as long as handshakes do.
 */
#ifndef MAPS_H
#define MAPS_H

#include "policy.h"

/* By netns cookie. One update of an element is the commit of an ADD. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct policy);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policies SEC(".maps");

/* Of all sandboxes in one trie: an update of a map of maps makes its writer wait for RCU, 8 ms for each ADD
 * and DEL (measured). Facts belong to a generation, so those of the next are here in full before its commit.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 24);
	__type(key, struct fact_key);
	__type(value, struct fact);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} facts SEC(".maps");

/* By netns cookie. An ADD makes the element and a DEL removes it: a program makes none, so none is left
 * behind. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct hits);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

/* What a redirected client dialled, and whom it got instead. Goes with the socket. */
struct dialled {
	struct address to;
	struct address got;
	__u16 port; /* network order, both */
	__u16 got_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dialled);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} clients SEC(".maps");

struct original {
	struct address to;
	__u16 port; /* network order */
	__u16 pad;
};

/* Apart from `clients`: getpeername's programs also run for accept(2). */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct original);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} accepted SEC(".maps");

/* From the client's SYN to the proxy's established socket. LRU, for those that never get there. */
struct handshake {
	__u64 cookie;
	struct address client;
	__u16 client_port; /* host order, both */
	__u16 port;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct handshake);
	__type(value, struct original);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} handshakes SEC(".maps");

/* Ports whose listeners are kept in `listeners`: one of each sandbox, two while an ADD replaces it. */
struct listened {
	__u64 cookie;
	__u32 port;
	__u32 slot; /* 0 in `ports` */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct listened);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

/* Of a larger SO_REUSEPORT group the rest is found through those that are here. */
#define SLOTS 64

/* The kernel takes a listener out when it closes. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, struct listened);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} listeners SEC(".maps");

#endif
