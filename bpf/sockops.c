/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The way of an original destination from the client's socket to the proxy's, and the proxy's listeners. */
#include "lookups.h"

/* Before the SYN leaves: with TCP Fast Open the proxy's socket is established by the SYN itself. */
INLINE void publish(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	const struct dialled *client = sk ? bpf_sk_storage_get(&clients, sk, NULL, 0) : NULL;
	struct handshake key = {
	    .cookie = bpf_get_netns_cookie(ops),
	    .client = BY_FAMILY(ops->family, ops->local_ip4, ops->local_ip6),
	    .client_port = ops->local_port,
	    .port = bpf_ntohl(ops->remote_port),
	};
	struct original original = {};
	struct policy p;

	if (client) {
		original.to = client->to;
		original.port = client->port;
	} else if (!sk || !policy_of(key.cookie, &p) || !(p.flags & TPROXY) || sk->mark != p.tproxy_mark) {
		/* Of an earlier client of this port that never got through. */
		bpf_map_delete_elem(&handshakes, &key);
		return;
	}
	/* Port 0: the proxy hands on what it has under its client's address, which must not reach it again.
	 */
	bpf_map_update_elem(&handshakes, &key, &original, BPF_ANY);
}

INLINE void receive(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct handshake key = {
	    .cookie = bpf_get_netns_cookie(ops),
	    .client = BY_FAMILY(ops->family, ops->remote_ip4, ops->remote_ip6),
	    .client_port = bpf_ntohl(ops->remote_port),
	    .port = ops->local_port,
	};
	struct original *original = bpf_map_lookup_elem(&handshakes, &key);

	if (!sk || !original)
		return;
	if (original->port)
		bpf_sk_storage_get(&accepted, sk, original, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&handshakes, &key);
}

INLINE void listening(struct bpf_sock_ops *ops)
{
	struct listened key = {.cookie = bpf_get_netns_cookie(ops), .port = ops->local_port};

	if (!bpf_map_lookup_elem(&ports, &key))
		return;
	for (int slot = 0; slot < SLOTS; slot++) {
		key.slot = slot;
		if (!bpf_sock_hash_update(ops, &listeners, &key, BPF_NOEXIST))
			return;
	}
}

SEC("sockops")
int follow(struct bpf_sock_ops *ops)
{
	if (ops->family != AF_INET && ops->family != AF_INET6)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		publish(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		receive(ops);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listening(ops);
		break;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
