/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* getsockopt(SO_ORIGINAL_DST) without conntrack. Every other option is left as the kernel answered it. */
#include "lookups.h"

#define SO_ORIGINAL_DST                                                                                      \
	80 /* linux/netfilter_ipv4.h, and of the same number linux/netfilter_ipv6/ip6_tables.h */
#define PAGE 4096

INLINE int answer4(struct bpf_sockopt *ctx, const struct address *to, __u16 port)
{
	struct sockaddr_in *value = ctx->optval;

	if ((void *)(value + 1) > ctx->optval_end || !is_ipv4(to))
		return 1;
	value->sin_family = AF_INET;
	value->sin_port = port;
	value->sin_addr.s_addr = to->word[3];
	__builtin_memset(value->__pad, 0, sizeof(value->__pad));
	ctx->optlen = sizeof(*value);
	barrier();
	ctx->retval = 0;
	return 1;
}

INLINE int answer6(struct bpf_sockopt *ctx, const struct address *to, __u16 port)
{
	struct sockaddr_in6 *value = ctx->optval;

	if ((void *)(value + 1) > ctx->optval_end)
		return 1;
	__builtin_memset(value, 0, sizeof(*value));
	value->sin6_family = AF_INET6;
	value->sin6_port = port;
	__builtin_memcpy(&value->sin6_addr, to, sizeof(*to));
	ctx->optlen = sizeof(*value);
	barrier();
	ctx->retval = 0;
	return 1;
}

/* A connection that was redirected inbound, or not at all, has its original destination for its own address.
 */
INLINE bool own_address(struct bpf_sockopt *ctx, struct original *original)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	if (ctx->retval >= 0 || ctx->sk->protocol != IPPROTO_TCP || !ctx->sk->dst_port)
		return false; /* conntrack has answered, or this is no connection */
	if (!bpf_map_lookup_elem(&policies, &cookie))
		return false;
	original->to = local_of(ctx->sk);
	original->port = bpf_htons(ctx->sk->src_port);
	return true;
}

SEC("cgroup/getsockopt")
int getsockopt(struct bpf_sockopt *ctx)
{
	const struct original *kept;
	struct original original = {};

	/* Of more than a page the program sees one only, and the kernel refuses what it then says of the
	 * length. */
	if (ctx->optlen > PAGE) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->optname != SO_ORIGINAL_DST || !ctx->sk)
		return 1;
	if (ctx->level != IPPROTO_IP && ctx->level != IPPROTO_IPV6)
		return 1;
	kept = bpf_sk_storage_get(&accepted, ctx->sk, NULL, 0);
	if (kept)
		original = *kept;
	else if (!own_address(ctx, &original))
		return 1;
	if (ctx->level == IPPROTO_IP)
		return answer4(ctx, &original.to, original.port);
	return answer6(ctx, &original.to, original.port);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
