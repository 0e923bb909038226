/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Datagrams of sockets that name their destination with each: captured DNS out, and its answers back. */
#include "outbound.h"

INLINE int on_sendmsg(struct bpf_sock_addr *ctx, struct flow *f, struct address *at)
{
	enum verdict verdict = PASS;
	struct dialled *client;
	struct policy p;
	__u16 port;

	if (f->port != DNS && f->port != HTTPS)
		return PASS;
	if (!policy_of(bpf_get_netns_cookie(ctx), &p))
		return PASS;
	if (concerns(&p, f))
		verdict = outbound(&p, f);
	if (verdict == PASS || verdict == REJECT)
		return verdict;
	port = listener(&p, verdict, &f->to, at);
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

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address at = {}; /* always set where it is read, but verifiers before 6.18 lose that */
	struct flow f = {.to = ipv4(ctx->user_ip4), .port = bpf_ntohs(ctx->user_port)};

	if (!ctx->sk)
		return 1;
	/* An AF_INET6 socket comes here too, for an IPv4-mapped destination. */
	f.from = local_of(ctx->sk);
	if (ctx->msg_src_ip4)
		f.from = ipv4(ctx->msg_src_ip4);
	f.mark = ctx->sk->mark;
	switch (on_sendmsg(ctx, &f, &at)) {
	case PASS:
		return 1;
	case REJECT:
		return refused();
	}
	if (is_any(&f.from) && is_ipv4(&f.source) && is_loopback(&at))
		ctx->msg_src_ip4 = f.source.word[3];
	barrier();
	ctx->user_ip4 = at.word[3];
	return 1;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address at = {}; /* always set where it is read, but verifiers before 6.18 lose that */
	struct flow f = {.to = IPV6(ctx->user_ip6), .port = bpf_ntohs(ctx->user_port)};

	if (!ctx->sk || is_ipv4(&f.to)) /* then sendmsg4 has it */
		return 1;
	f.from = IPV6(ctx->msg_src_ip6);
	if (is_any(&f.from))
		f.from = local_of(ctx->sk);
	f.mark = ctx->sk->mark;
	switch (on_sendmsg(ctx, &f, &at)) {
	case PASS:
		return 1;
	case REJECT:
		return refused();
	}
	if (is_any(&f.from) && !is_any(&f.source) && is_loopback(&at)) {
		SET_IPV6(ctx->msg_src_ip6, f.source);
	}
	SET_IPV6(ctx->user_ip6, at);
	return 1;
}

/* An answer of the proxy's comes from the server that the socket asked last. */
INLINE const struct dialled *asked(struct bpf_sock_addr *ctx, const struct address *from)
{
	const struct dialled *client;

	if (!ctx->sk)
		return NULL;
	client = bpf_sk_storage_get(&clients, ctx->sk, NULL, 0);
	if (!client || client->got_port != (__u16)ctx->user_port || !equal(from, &client->got))
		return NULL;
	return client;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct address from = ipv4(ctx->user_ip4);
	const struct dialled *client = asked(ctx, &from);

	if (client) {
		ctx->user_ip4 = client->to.word[3];
		barrier();
		ctx->user_port = client->port;
	}
	return 1;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct address from = IPV6(ctx->user_ip6);
	const struct dialled *client = asked(ctx, &from);

	if (client) {
		SET_IPV6(ctx->user_ip6, client->to);
		ctx->user_port = client->port;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
