/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* connect(2) of TCP and of UDP: the destination becomes the proxy's listener, on loopback. */
#include "outbound.h"

INLINE bool bind_to(struct bpf_sock_addr *ctx, const struct address *source)
{
	/* Port 0: connect(2) itself chooses one, for this destination alone. */
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = source->word[3]};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};

	if (ctx->family == AF_INET)
		return !bpf_bind(ctx, (struct sockaddr *)&v4, sizeof(v4));
	__builtin_memcpy(&v6.sin6_addr, source, sizeof(*source));
	return !bpf_bind(ctx, (struct sockaddr *)&v6, sizeof(v6));
}

INLINE bool listens(struct bpf_sock_addr *ctx, const struct address *at, __u16 port, bool tcp)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size = sizeof(tuple.ipv6);

	if (is_ipv4(at)) {
		size = sizeof(tuple.ipv4);
		tuple.ipv4.saddr = tuple.ipv4.daddr = at->word[3];
		tuple.ipv4.dport = bpf_htons(port);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, at, sizeof(*at));
		__builtin_memcpy(tuple.ipv6.daddr, at, sizeof(*at));
		tuple.ipv6.dport = bpf_htons(port);
	}
	if (tcp)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Keep the address that the client would have had: its route to loopback would give it 127.0.0.1. */
INLINE void keep_source(struct bpf_sock_addr *ctx, const struct flow *f, struct address *at, __u16 port)
{
	if (!is_any(&f->from) || is_any(&f->source) || is_loopback(&f->source) || !is_loopback(at))
		return;
	if (bind_to(ctx, &f->source))
		return;
	/* It has bound a port, and its address can be chosen no more but by dialling it: every address
	 * of the sandbox's is as near as loopback, if the proxy listens there.
	 */
	if (listens(ctx, &f->source, port, f->tcp))
		*at = f->source;
}

INLINE int on_connect(struct bpf_sock_addr *ctx, struct flow *f, struct address *at)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	enum verdict verdict = PASS;
	struct dialled *client;
	struct policy p;
	__u16 port;

	if (!ctx->sk || !policy_of(cookie, &p))
		return PASS;
	if (concerns(&p, f))
		verdict = outbound(&p, f);
	if (verdict == PASS || verdict == REJECT) {
		/* The socket may have dialled another, captured destination before. */
		bpf_sk_storage_delete(&clients, ctx->sk);
		return verdict;
	}
	port = listener(&p, verdict, &f->to, at);
	keep_source(ctx, f, at, port);
	client = bpf_sk_storage_get(&clients, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!client)
		return REJECT; /* out of memory: never a bypass */
	client->to = f->to;
	client->port = bpf_htons(f->port);
	client->got = *at;
	client->got_port = bpf_htons(port);
	ctx->user_port = bpf_htons(port);
	return verdict;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct address at = {}; /* always set where it is read, but verifiers before 6.18 lose that */
	struct flow f = {
	    .to = ipv4(ctx->user_ip4),
	    .port = bpf_ntohs(ctx->user_port),
	    .tcp = ctx->protocol == IPPROTO_TCP,
	};

	if (!ctx->sk || (!f.tcp && ctx->protocol != IPPROTO_UDP))
		return 1;
	f.from = local_of(ctx->sk);
	f.mark = ctx->sk->mark;
	switch (on_connect(ctx, &f, &at)) {
	case PASS:
		return 1;
	case REJECT:
		return refused();
	}
	ctx->user_ip4 = at.word[3];
	return 1;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct address at = {}; /* always set where it is read, but verifiers before 6.18 lose that */
	struct flow f = {
	    .to = IPV6(ctx->user_ip6),
	    .port = bpf_ntohs(ctx->user_port),
	    .tcp = ctx->protocol == IPPROTO_TCP,
	};

	if (!ctx->sk || (!f.tcp && ctx->protocol != IPPROTO_UDP))
		return 1;
	f.from = local_of(ctx->sk);
	f.mark = ctx->sk->mark;
	switch (on_connect(ctx, &f, &at)) {
	case PASS:
		return 1;
	case REJECT:
		return refused();
	}
	SET_IPV6(ctx->user_ip6, at);
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
