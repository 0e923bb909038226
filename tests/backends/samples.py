"""Redirections that between them use every field, for tests that ask how rules are written, not what they do."""

from cni_plugin.model import parse
from cni_plugin.model.redirection import ANYWHERE, Redirection, UidExclusion

PROXY = ((1337, 1337),)
PLAIN = Redirection(proxy_uids=PROXY, proxy_gids=PROXY)
DNS = PLAIN.replace(dns=ANYWHERE, tunnel_port=15008, exclude_inbound_ports=((15020, 15021), (15090, 15090)))
EVERYTHING = DNS.replace(
    proxy_uids=((5, 5), (7, 7), (9, 9)),
    proxy_gids=((5, 10), (20, 30), (4294967294, 4294967294)),
    dns=parse.prefixes("dns", ["10.0.0.10", "10.0.0.11", "fd00::5", "fd00::7"]),
    dns_address=parse.addresses("dnsAddress", ["127.0.0.1", "fd00::53"]),
    drop_invalid=True,
    udp443="reject",
    exclude_inbound_cidrs=parse.prefixes("x", ["10.9.0.0/16", "10.7.7.7", "fd09::/16"]),
    exclude_outbound_cidrs=parse.prefixes("x", ["10.0.0.0/9", "11.0.0.0/8", "fd00::/8", "2001:db8::1"]),
    exclude_outbound_ports=tuple((port, port + port % 3) for port in range(1000, 1200, 5)),
    exclude_outbound_ports_for_uids=(
        UidExclusion(uids=((1, 5), (8, 8)), ports=((22, 22),), protocols=("tcp",)),
        UidExclusion(uids=((6, 6),), ports=((53, 53), (60, 70))),
    ),
    exclude_interfaces=("net1", "foo+"),
    virtual_interfaces=("tap0", "vnet+"),
    include_inbound_ports=((80, 80), (90, 99)),
    include_outbound_ports=((443, 443),),
    include_outbound_cidrs=parse.prefixes("x", ["10.0.0.0/8", "192.0.2.0/25", "fd00::/8"]),
    include_outbound_gids=((1, 1), (3, 3)),
    exclude_outbound_gids=((100, 200),),
)
SAMPLES = {
    "plain": PLAIN,
    "dns": DNS,
    "everything": EVERYTHING,
    "everything, tproxy": EVERYTHING.replace(inbound="tproxy"),
    "tproxy, no self-calls": PLAIN.replace(inbound="tproxy", self_calls_to_inbound=False),
    "inbound off": DNS.replace(inbound="off", include_loopback=True),
    "outbound off": DNS.replace(outbound="off"),
}
FAMILIES = {"dual": (4, 6), "ipv4": (4,), "ipv6": (6,)}
