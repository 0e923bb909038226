/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Reading a sandbox's policy and facts. No decision is made here. */
#ifndef LOOKUPS_H
#define LOOKUPS_H

#include "maps.h"

#define INLINE static __always_inline

/* Two stores to neighbouring fields of a context must stay two: the verifier knows no wider one. */
#define barrier() asm volatile("" ::: "memory")

/* Set an IPv6 address of a context. */
#define SET_IPV6(field, address)                                                                             \
	do {                                                                                                 \
		field[0] = (address).word[0];                                                                \
		barrier();                                                                                   \
		field[1] = (address).word[1];                                                                \
		barrier();                                                                                   \
		field[2] = (address).word[2];                                                                \
		barrier();                                                                                   \
		field[3] = (address).word[3];                                                                \
		barrier();                                                                                   \
	} while (0)

INLINE bool is_ipv4(const struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

INLINE bool is_loopback(const struct address *a)
{
	if (is_ipv4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->word[0] && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(1);
}

INLINE bool is_any(const struct address *a)
{
	return !a->word[0] && !a->word[1] && !a->word[3] && (!a->word[2] || is_ipv4(a));
}

INLINE bool equal(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

INLINE struct address ipv4(__u32 word)
{
	return (struct address){.word = {0, 0, bpf_htonl(0xffff), word}};
}

/* The verifier knows the fields of a context and of a socket by constant offsets alone: hence a macro, and
 * volatile, which keeps clang from choosing between two of them by arithmetic.
 */
#define READ(field) (*(volatile const __u32 *)&(field))
#define IPV6(field)                                                                                          \
	((struct address){.word = {READ((field)[0]), READ((field)[1]), READ((field)[2]), READ((field)[3])}})

/* Of an AF_INET6 socket the IPv4 field reads as a filler (LOOPBACK4_IPV6), so the family decides. */
#define BY_FAMILY(family, v4, v6)                                                                            \
	({                                                                                                   \
		__u32 word = READ(v4);                                                                       \
		struct address both = IPV6(v6);                                                              \
		(family) == AF_INET ? ipv4(word) : both;                                                     \
	})

INLINE struct address local_of(const struct bpf_sock *sk)
{
	return BY_FAMILY(sk->family, sk->src_ip4, sk->src_ip6);
}

/* A copy, because an element may be reused for another sandbox as soon as it is replaced. */
INLINE bool policy_of(__u64 cookie, struct policy *copy)
{
	const struct policy *found = bpf_map_lookup_elem(&policies, &cookie);

	if (!found)
		return false;
	*copy = *found;
	barrier();
	return copy->cookie == cookie && *(volatile __u64 *)&found->cookie == cookie;
}

/* `row` decided. Nobody else has this CPU's counter, but a program that is preempted would lose a hit. */
INLINE void count(const struct policy *p, enum row row)
{
	__u64 cookie = p->cookie;
	struct hits *hits = bpf_map_lookup_elem(&counters, &cookie);

	if (hits && row > NO_ROW && row < ROWS)
		__sync_fetch_and_add(&hits->of[row], 1);
}

INLINE bool programmed(const struct policy *p, const struct address *to)
{
	return p->flags & (is_ipv4(to) ? ON_IPV4 : ON_IPV6);
}

INLINE struct fact_key key_of(const struct policy *p, __u32 kind, __u32 bits)
{
	return (struct fact_key){
	    .length = KIND_BITS + bits,
	    .cookie = {p->cookie, p->cookie >> 32},
	    .kind = bpf_htonl(p->generation << 8 | kind),
	};
}

INLINE const struct fact *address_fact(const struct policy *p, const struct address *a)
{
	struct fact_key key = key_of(p, FACT_ADDRESS, 128);

	key.data[0] = a->word[0];
	key.data[1] = a->word[1];
	key.data[2] = a->word[2];
	key.data[3] = a->word[3];
	return bpf_map_lookup_elem(&facts, &key);
}

INLINE const struct fact *number_fact(const struct policy *p, __u32 kind, __u32 bits, __u32 number)
{
	struct fact_key key = key_of(p, kind, bits);

	key.data[0] = bpf_htonl(number << (32 - bits));
	return bpf_map_lookup_elem(&facts, &key);
}

INLINE __u32 bits_of(const struct fact *fact)
{
	return fact ? fact->bits : 0;
}

INLINE __u64 exclusions_of(const struct fact *fact)
{
	return fact ? fact->exclusions : 0;
}

#endif
