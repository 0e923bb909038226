/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Takes listeners that are older than the redirection into `listeners`: read once, in their netns. */
#include "lookups.h"

#define TCP_LISTEN 10

/* What is needed of the kernel's own types; where it is, the kernel's BTF says at load time. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net {
	__u64 net_cookie;
};
struct sock_common {
	__u16 skc_num;
	volatile unsigned char skc_state;
	struct {
		struct net *net;
	} skc_net;
};
struct bpf_iter__tcp {
	struct sock_common *sk_common;
};
#pragma clang attribute pop

SEC("iter/tcp")
int adopt(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct listened key = {};

	if (!sk || sk->skc_state != TCP_LISTEN)
		return 0;
	key.cookie = sk->skc_net.net->net_cookie;
	key.port = sk->skc_num;
	if (!bpf_map_lookup_elem(&ports, &key))
		return 0;
	for (int slot = 0; slot < SLOTS; slot++) {
		key.slot = slot;
		if (!bpf_map_update_elem(&listeners, &key, sk, BPF_NOEXIST))
			return 0;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
