/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* getpeername(2): a client sees the address it dialled. accept(2) runs these too, of sockets that dialled
 * none. */
#include "lookups.h"

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	const struct dialled *client = ctx->sk ? bpf_sk_storage_get(&clients, ctx->sk, NULL, 0) : NULL;

	if (client) {
		ctx->user_ip4 = client->to.word[3];
		barrier();
		ctx->user_port = client->port;
	}
	return 1;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	const struct dialled *client = ctx->sk ? bpf_sk_storage_get(&clients, ctx->sk, NULL, 0) : NULL;

	if (client) {
		SET_IPV6(ctx->user_ip6, client->to);
		ctx->user_port = client->port;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
