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
		ctx->user_ip6[0] = client->to.word[0];
		barrier();
		ctx->user_ip6[1] = client->to.word[1];
		barrier();
		ctx->user_ip6[2] = client->to.word[2];
		barrier();
		ctx->user_ip6[3] = client->to.word[3];
		barrier();
		ctx->user_port = client->port;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
