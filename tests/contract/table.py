"""The contract as data: a redirection, a dial, and where it must end. One line is one claim about the kernel.

The expectations are written by hand from docs/ARCHITECTURE.md, "The contract"; nothing here is computed from the
oracle or a backend, and both are held against it (tests/contract/test_contract.py). Long because it is one table.
"""

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from cni_plugin.model.redirection import ANYWHERE, Prefixes, Redirection, Span, UidExclusion
from tests.lab.topology import DEAD, PROXY
from tests.lab.topology import INBOUND as INBOUND_PORT

BASE = Redirection(proxy_uids=((PROXY, PROXY),), proxy_gids=((PROXY, PROXY),))


def cidrs(*texts: str) -> Prefixes:
    """Return prefixes of both families as a Redirection holds them."""
    networks = [ip_network(text) for text in texts]
    networks.sort(key=lambda network: (network.version, network.network_address.packed))
    return tuple((network.network_address.packed, network.prefixlen) for network in networks)


def port(*numbers: int) -> tuple[Span, ...]:
    """Return single ports (or ids) as spans."""
    return tuple((number, number) for number in sorted(numbers))


SERVICE = cidrs("10.1.0.0/16", "2001:db8:1::/48")
RESOLVER = cidrs("10.96.0.10/32", "2001:db8:96::a/128")
# 5,000 prefixes of each family, apart from each other, the last of them the service's.
MANY_CIDRS = cidrs(
    *(f"100.{64 + i // 256}.{i % 256}.0/28" for i in range(4999)),
    *(f"2001:db8:ffff:{i:x}::/72" for i in range(4999)),
    "10.1.2.3/32",
    "2001:db8:1::3/128",
)
# Far more than the 15 ports a multiport match takes, with ranges, none merging with its neighbour.
MANY_PORTS = tuple((low, low + i % 2) for i, low in enumerate(range(20000, 20400, 4)))
MORE_PORTS = (*port(80), *MANY_PORTS)
EVERYONE = ((0, 0xFFFFFFFE),)


@dataclass(frozen=True)
class Who:
    """A dial of the table. `to` and `source` are names of tests.lab.topology.ADDRESSES."""

    place: str = "pod"  # pod | outside | guest
    to: str = "service"
    port: int = 80
    protocol: str = "tcp"
    uid: int = 1000
    gid: int = 1000
    source: str = ""
    kind: dict[str, Any] = field(default_factory=dict)  # what else tests.lab.topology.Dial takes


@dataclass(frozen=True)
class Case:
    """One line of the table.

    `ends` is the proxy's listener ("inbound", "outbound", "dns"), "app" (the pod's own listener of the dialled
    port), "outside", "guest" or "refused". `families` are programmed, `over` are dialled.
    """

    name: str
    row: str
    changes: dict[str, Any]
    who: Who
    ends: str
    families: tuple[int, ...] = (4, 6)
    over: tuple[int, ...] = (4, 6)


def app(to: str = "service", port: int = 80, **more: Any) -> Who:
    """An application's process in the pod dials."""
    return Who("pod", to, port, **more)


def proxy(to: str = "service", port: int = 80, **more: Any) -> Who:
    """The proxy dials."""
    return Who("pod", to, port, **{"uid": PROXY, "gid": PROXY, **more})


def node(to: str = "own", port: int = 80, **more: Any) -> Who:
    """Someone outside dials the pod."""
    return Who("outside", to, port, **more)


def guest(to: str = "own-net1", port: int = 80, **more: Any) -> Who:
    """Someone behind net1 dials."""
    return Who("guest", to, port, **more)


UDP = {"protocol": "udp"}
ALL_DNS = {"dns": ANYWHERE}
GUESTS = {"virtual_interfaces": ("net1",)}

INBOUND = [
    ("from another interface", "I4", {"exclude_interfaces": ("net1",)}, node(), "inbound"),
    ("from an excluded interface", "I1", {"exclude_interfaces": ("net1",)}, guest(), "app"),
    ("from an excluded interface by prefix", "I1", {"exclude_interfaces": ("net+",)}, guest(), "app"),
    ("a name is not a prefix", "I4", {"exclude_interfaces": ("net",)}, guest(), "inbound"),
    ("from an excluded source", "I2", {"exclude_inbound_cidrs": SERVICE}, node(source="service"), "app"),
    ("from another source", "I4", {"exclude_inbound_cidrs": SERVICE}, node(source="service2"), "inbound"),
    ("from one of 5000 sources", "I2", {"exclude_inbound_cidrs": MANY_CIDRS}, node(source="service"), "app"),
    (
        "from none of 5000 sources",
        "I4",
        {"exclude_inbound_cidrs": MANY_CIDRS},
        node(source="public"),
        "inbound",
    ),
    ("from any source", "I2", {"exclude_inbound_cidrs": ANYWHERE}, node(source="public"), "app"),
    ("to an excluded port", "I3", {"exclude_inbound_ports": port(80, 9090)}, node(), "app"),
    ("to an excluded range", "I3", {"exclude_inbound_ports": ((8000, 8100),)}, node(port=8085), "app"),
    (
        "to a port beside the range",
        "I4",
        {"exclude_inbound_ports": ((8000, 8084),)},
        node(port=8085),
        "inbound",
    ),
    ("to one of 100 excluded ports", "I3", {"exclude_inbound_ports": MORE_PORTS}, node(), "app"),
    ("to none of 100 excluded ports", "I4", {"exclude_inbound_ports": MANY_PORTS}, node(), "inbound"),
    ("to the tunnel port", "I3", {"tunnel_port": 15008}, node(port=15008), "app"),
    ("beside the tunnel port", "I4", {"tunnel_port": 15008}, node(), "inbound"),
    ("to any port", "I4", {}, node(), "inbound"),
    ("to the second address", "I4", {}, node("own2"), "inbound"),
    ("to the address of another interface", "I4", {}, node("own-net1"), "inbound"),
    ("from the second interface", "I4", {}, guest(), "inbound"),
    ("from far away", "I4", {}, node(source="public"), "inbound"),
    ("to port 53", "I4", ALL_DNS, node(port=53), "inbound"),
    ("to an included port", "I4", {"include_inbound_ports": port(80)}, node(), "inbound"),
    ("to one of 100 included ports", "I4", {"include_inbound_ports": MORE_PORTS}, node(), "inbound"),
    ("to a port not included", "I5", {"include_inbound_ports": port(80)}, node(port=8080), "app"),
    ("no port included", "I5", {"include_inbound_ports": ()}, node(), "app"),
    ("udp", "I5", ALL_DNS, node(port=53, **UDP), "app"),
    ("the proxy is down", "I4", {"inbound_port": DEAD}, node(), "refused"),
    ("the proxy is down, second interface", "I4", {"inbound_port": DEAD}, guest(), "refused"),
    ("invalid packets dropped", "I4", {"drop_invalid": True}, node(), "inbound"),
    ("by the pod itself", "O7", {}, app("own"), "app"),
    ("by the pod itself, other address", "O7", {}, app("own2", source="own"), "app"),
    ("IPv4 only, IPv4", "I4", {}, node(), "inbound", (4,), (4,)),
    ("IPv4 only, IPv6", "I5", {}, node(), "app", (4,), (6,)),
    ("IPv6 only, IPv4", "I5", {}, node(), "app", (6,), (4,)),
    ("IPv6 only, IPv6", "I4", {}, node(), "inbound", (6,), (6,)),
]
TPROXY = {"inbound": "tproxy"}
OFF = {"inbound": "off"}

OUTBOUND = [
    ("by an excluded interface", "O1", {"exclude_interfaces": ("net1",)}, app("guest"), "guest"),
    ("by an excluded interface by prefix", "O1", {"exclude_interfaces": ("ne+",)}, app("guest"), "guest"),
    (
        "dns by an excluded interface",
        "O1",
        {**ALL_DNS, "exclude_interfaces": ("net1",)},
        app("guest", 53, **UDP),
        "guest",
    ),
    ("by another interface", "O10", {"exclude_interfaces": ("net1",)}, app(), "outbound"),
    ("by the second interface", "O10", {}, app("guest"), "outbound"),
    ("self-call, eth0 excluded", "O4", {"exclude_interfaces": ("eth0",)}, proxy("own"), "inbound"),
    ("self-call, lo excluded", "O1", {"exclude_interfaces": ("lo",)}, proxy("own"), "app"),
    ("to an excluded port", "O2", {"exclude_outbound_ports": port(80)}, app(), "outside"),
    ("to an excluded range", "O2", {"exclude_outbound_ports": ((8000, 8100),)}, app(port=8085), "outside"),
    (
        "to a port beside the range",
        "O10",
        {"exclude_outbound_ports": ((8000, 8084),)},
        app(port=8085),
        "outbound",
    ),
    ("to one of 100 excluded ports", "O2", {"exclude_outbound_ports": MORE_PORTS}, app(), "outside"),
    ("to none of 100 excluded ports", "O10", {"exclude_outbound_ports": MANY_PORTS}, app(), "outbound"),
    (
        "excluded port 53, udp",
        "O2",
        {**ALL_DNS, "exclude_outbound_ports": port(53)},
        app(port=53, **UDP),
        "outside",
    ),
    ("excluded port 53, tcp", "O2", {**ALL_DNS, "exclude_outbound_ports": port(53)}, app(port=53), "outside"),
    ("self-call to an excluded port", "O2", {"exclude_outbound_ports": port(80)}, proxy("own"), "app"),
    ("passthrough", "O3", {}, proxy("own", source="passthrough"), "app"),
    ("passthrough, another owner", "O3", {"include_loopback": True}, app("own", source="passthrough"), "app"),
    (
        "passthrough of one's own",
        "O3",
        {"passthrough_sources": cidrs("10.50.0.3/32", "fd00:50::3/128")},
        app(source="own2"),
        "outside",
    ),
    (
        "another source",
        "O10",
        {"passthrough_sources": cidrs("10.50.0.3/32", "fd00:50::3/128")},
        app(source="own"),
        "outbound",
    ),
    ("self-call", "O4", {}, proxy("own"), "inbound"),
    ("self-call by uid", "O4", {}, proxy("own", gid=1000), "inbound"),
    ("self-call by gid", "O4", {}, proxy("own", uid=1000), "inbound"),
    ("self-call to the second address", "O4", {}, proxy("own2"), "inbound"),
    ("self-call to the second interface", "O4", {}, proxy("own-net1"), "inbound"),
    ("self-call to 127.0.0.2", "O4", {}, proxy("loopback2"), "inbound", (4, 6), (4,)),
    ("self-call, the proxy is down", "O4", {"inbound_port": DEAD}, proxy("own"), "refused"),
    ("self-call with source", "O4", {}, proxy("own", source="own2"), "inbound"),
    ("self-call without policy", "O5", {"self_calls_to_inbound": False}, proxy("own"), "app"),
    ("self-call to the tunnel", "O5", {"tunnel_port": 15008}, proxy("own", 15008), "app"),
    ("self-call to dns, captured", "O5", ALL_DNS, proxy("own", 53), "app"),
    ("self-call to dns, not captured", "O4", {}, proxy("own", 53), "inbound"),
    ("self-call to udp dns", "O5", ALL_DNS, proxy("own", 53, **UDP), "app"),
    ("the proxy to loopback", "O5", {}, proxy("loopback"), "app"),
    (
        "the proxy to a loopback cidr",
        "O5",
        {"loopback_cidrs": cidrs("10.50.0.2/32", "fd00:50::2/128")},
        proxy("own"),
        "app",
    ),
    ("the proxy", "O5", {}, proxy(), "outside"),
    ("the proxy by uid", "O5", {"proxy_gids": ()}, proxy(gid=1000), "outside"),
    ("the proxy by gid", "O5", {"proxy_uids": ()}, proxy(uid=1000), "outside"),
    ("the proxy by a range of uids", "O5", {"proxy_uids": ((1300, 1400),)}, app(uid=1350), "outside"),
    ("beside the range of uids", "O10", {"proxy_uids": ((1300, 1349),)}, app(uid=1350), "outbound"),
    ("the highest uid", "O5", {"proxy_uids": port(0xFFFFFFFE)}, app(uid=0xFFFFFFFE), "outside"),
    ("several uids", "O5", {"proxy_uids": port(3, 5, 7)}, app(uid=7), "outside"),
    ("root is an application", "O10", {}, app(uid=0, gid=0), "outbound"),
    ("the proxy's udp dns", "O5", ALL_DNS, proxy("resolver", 53, **UDP), "outside"),
    ("the proxy's tcp dns", "O5", ALL_DNS, proxy("resolver", 53), "outside"),
    ("the proxy's udp 443", "O5", {"udp443": "reject"}, proxy(port=443, **UDP), "outside"),
    ("excluded gid", "O5", {"exclude_outbound_gids": port(1000)}, app(), "outside"),
    (
        "excluded gid, dns",
        "O5",
        {**ALL_DNS, "exclude_outbound_gids": port(1000)},
        app(port=53, **UDP),
        "outside",
    ),
    ("another gid", "O10", {"exclude_outbound_gids": ((1001, 2000),)}, app(), "outbound"),
    ("included gid", "O10", {"include_outbound_gids": ((900, 1000),)}, app(), "outbound"),
    ("gid not included", "O5", {"include_outbound_gids": ((900, 999),)}, app(), "outside"),
    (
        "gid not included, dns",
        "O5",
        {**ALL_DNS, "include_outbound_gids": port(5)},
        app(port=53, **UDP),
        "outside",
    ),
    ("no gid included", "O5", {"include_outbound_gids": ()}, app(), "outside"),
    ("udp dns", "O6", ALL_DNS, app("resolver", 53, **UDP), "dns"),
    ("udp dns, unconnected", "O6", ALL_DNS, app("resolver", 53, **UDP, kind={"unconnected": True}), "dns"),
    ("tcp dns", "O6", ALL_DNS, app("resolver", 53), "dns"),
    ("udp dns to loopback", "O6", ALL_DNS, app("loopback", 53, **UDP), "dns"),
    ("tcp dns to loopback", "O6", ALL_DNS, app("loopback", 53), "dns"),
    ("udp dns to oneself", "O6", ALL_DNS, app("own", 53, **UDP), "dns"),
    (
        "udp dns to an excluded cidr",
        "O6",
        {**ALL_DNS, "exclude_outbound_cidrs": ANYWHERE},
        app("resolver", 53, **UDP),
        "dns",
    ),
    ("udp dns with source", "O6", ALL_DNS, app("resolver", 53, source="own2", **UDP), "dns"),
    ("udp dns by the second interface", "O6", ALL_DNS, app("guest", 53, **UDP), "dns"),
    (
        "udp dns, the proxy is down",
        "O6",
        {**ALL_DNS, "dns_port": DEAD},
        app("resolver", 53, **UDP),
        "refused",
    ),
    ("tcp dns, the proxy is down", "O6", {**ALL_DNS, "dns_port": DEAD}, app("resolver", 53), "refused"),
    ("udp dns of a server", "O6", {"dns": RESOLVER}, app("resolver", 53, **UDP), "dns"),
    ("tcp dns of a server", "O6", {"dns": RESOLVER}, app("resolver", 53), "dns"),
    ("udp dns of another server", "O11", {"dns": RESOLVER}, app("resolver2", 53, **UDP), "outside"),
    ("tcp dns of another server", "O10", {"dns": RESOLVER}, app("resolver2", 53), "outbound"),
    (
        "dns servers of the other family only",
        "O11",
        {"dns": cidrs("8.8.8.8/32")},
        app("resolver", 53, **UDP),
        "outside",
        (6,),
        (6,),
    ),
    ("udp only, udp", "O6", {**ALL_DNS, "dns_protocols": ("udp",)}, app("resolver", 53, **UDP), "dns"),
    ("udp only, tcp", "O10", {**ALL_DNS, "dns_protocols": ("udp",)}, app("resolver", 53), "outbound"),
    ("tcp only, udp", "O11", {**ALL_DNS, "dns_protocols": ("tcp",)}, app("resolver", 53, **UDP), "outside"),
    ("tcp only, tcp", "O6", {**ALL_DNS, "dns_protocols": ("tcp",)}, app("resolver", 53), "dns"),
    ("dns off, udp", "O11", {}, app("resolver", 53, **UDP), "outside"),
    ("dns off, tcp", "O10", {}, app("resolver", 53), "outbound"),
    ("udp to another port", "O11", ALL_DNS, app("resolver", 80, **UDP), "outside"),
    ("to loopback", "O7", {}, app("loopback"), "app"),
    ("to 127.0.0.2", "O7", {}, app("loopback2"), "app", (4, 6), (4,)),
    ("to oneself", "O7", {}, app("own"), "app"),
    ("to oneself, included", "O10", {"include_loopback": True}, app("own"), "outbound"),
    ("to 127.0.0.2, included", "O10", {"include_loopback": True}, app("loopback2"), "outbound", (4, 6), (4,)),
    ("to loopback, included", "O7", {"include_loopback": True}, app("loopback"), "app"),
    (
        "to loopback, no cidr",
        "O10",
        {"include_loopback": True, "loopback_cidrs": ()},
        app("loopback"),
        "outbound",
    ),
    (
        "to a loopback cidr",
        "O7",
        {"loopback_cidrs": cidrs("10.1.0.0/16", "2001:db8:1::/48")},
        app(),
        "outside",
    ),
    (
        "to oneself, included, the proxy is down",
        "O10",
        {"include_loopback": True, "outbound_port": DEAD},
        app("own"),
        "refused",
    ),
    ("to an excluded cidr", "O8", {"exclude_outbound_cidrs": SERVICE}, app(), "outside"),
    ("to another cidr", "O10", {"exclude_outbound_cidrs": SERVICE}, app("service2"), "outbound"),
    ("to one of 5000 cidrs", "O8", {"exclude_outbound_cidrs": MANY_CIDRS}, app(), "outside"),
    ("to none of 5000 cidrs", "O10", {"exclude_outbound_cidrs": MANY_CIDRS}, app("public"), "outbound"),
    ("excluded everywhere", "O8", {"exclude_outbound_cidrs": ANYWHERE}, app(), "outside"),
    (
        "cidr before port",
        "O8",
        {"exclude_outbound_cidrs": SERVICE, "include_outbound_ports": port(80)},
        app(),
        "outside",
    ),
    (
        "to an included port",
        "O9",
        {"include_outbound_ports": port(80), "include_outbound_cidrs": ()},
        app(),
        "outbound",
    ),
    (
        "to one of 100 included ports",
        "O9",
        {"include_outbound_ports": MORE_PORTS, "include_outbound_cidrs": ()},
        app(),
        "outbound",
    ),
    ("to an included cidr", "O10", {"include_outbound_cidrs": SERVICE}, app(), "outbound"),
    ("to one of 5000 included cidrs", "O10", {"include_outbound_cidrs": MANY_CIDRS}, app(), "outbound"),
    ("anywhere", "O10", {}, app("public"), "outbound"),
    ("with source", "O10", {}, app(source="own2"), "outbound"),
    (
        "IPv4 included only, IPv4",
        "O10",
        {"include_outbound_cidrs": cidrs("0.0.0.0/0")},
        app(),
        "outbound",
        (4, 6),
        (4,),
    ),
    (
        "IPv4 included only, IPv6",
        "O11",
        {"include_outbound_cidrs": cidrs("0.0.0.0/0")},
        app(),
        "outside",
        (4, 6),
        (6,),
    ),
    ("the proxy is down", "O10", {"outbound_port": DEAD}, app(), "refused"),
    (
        "the proxy is down, included port",
        "O9",
        {"outbound_port": DEAD, "include_outbound_ports": port(80)},
        app(),
        "refused",
    ),
    ("to a cidr not included", "O11", {"include_outbound_cidrs": SERVICE}, app("service2"), "outside"),
    ("nothing included", "O11", {"include_outbound_cidrs": ()}, app(), "outside"),
    ("off", "O11", {"outbound": "off"}, app(), "outside"),
    ("off, dns", "O11", {**ALL_DNS, "outbound": "off"}, app("resolver", 53, **UDP), "outside"),
    ("off, self-call", "O11", {"outbound": "off"}, proxy("own"), "app"),
    ("off, udp 443", "O11", {"outbound": "off", "udp443": "reject"}, app(port=443, **UDP), "outside"),
    ("invalid packets dropped", "O10", {"drop_invalid": True}, app(), "outbound"),
    ("IPv4 only, IPv4", "O10", {}, app(), "outbound", (4,), (4,)),
    ("IPv4 only, IPv6", "O11", {}, app(), "outside", (4,), (6,)),
    ("IPv4 only, IPv6 dns", "O11", ALL_DNS, app("resolver", 53, **UDP), "outside", (4,), (6,)),
    ("IPv4 only, IPv6 self-call", "O11", {}, proxy("own"), "app", (4,), (6,)),
    ("IPv4 only, IPv6 udp 443", "O11", {"udp443": "reject"}, app(port=443, **UDP), "outside", (4,), (6,)),
    ("IPv6 only, IPv4", "O11", {}, app(), "outside", (6,), (4,)),
    ("IPv6 only, IPv6", "O10", {}, app(), "outbound", (6,), (6,)),
    ("udp 443", "O11", {}, app(port=443, **UDP), "outside"),
    ("udp 443 refused", "udp443", {"udp443": "reject"}, app(port=443, **UDP), "refused"),
    (
        "udp 443 refused by port",
        "udp443",
        {"udp443": "reject", "include_outbound_ports": port(443), "include_outbound_cidrs": ()},
        app(port=443, **UDP),
        "refused",
    ),
    (
        "udp 443 not included",
        "O11",
        {"udp443": "reject", "include_outbound_cidrs": ()},
        app(port=443, **UDP),
        "outside",
    ),
    (
        "udp 443 to an excluded cidr",
        "O8",
        {"udp443": "reject", "exclude_outbound_cidrs": SERVICE},
        app(port=443, **UDP),
        "outside",
    ),
    ("udp 443 to oneself", "O7", {"udp443": "reject"}, app("own", 443, **UDP), "app"),
    (
        "udp 443, excluded port",
        "O2",
        {"udp443": "reject", "exclude_outbound_ports": port(443)},
        app(port=443, **UDP),
        "outside",
    ),
    ("tcp 443 while udp is refused", "O10", {"udp443": "reject"}, app(port=443), "outbound"),
]


def _exclusion(**rule: Any) -> dict[str, Any]:
    return {"exclude_outbound_ports_for_uids": (UidExclusion(**{"uids": port(1000), **rule}),)}


PER_UID = [
    ("port of a uid", "O2", _exclusion(ports=port(80)), app(), "outside"),
    ("port of another uid", "O10", _exclusion(ports=port(80)), app(uid=1001), "outbound"),
    ("another port of the uid", "O10", _exclusion(ports=port(80)), app(port=8080), "outbound"),
    ("every port of the uid", "O2", _exclusion(), app(), "outside"),
    (
        "range of uids and ports",
        "O2",
        _exclusion(uids=((900, 1100),), ports=((8000, 8100),)),
        app(port=8085),
        "outside",
    ),
    ("100 ports of every uid", "O2", _exclusion(uids=EVERYONE, ports=MORE_PORTS), app(), "outside"),
    ("tcp only, tcp", "O2", {**ALL_DNS, **_exclusion(protocols=("tcp",))}, app("resolver", 53), "outside"),
    ("tcp only, udp", "O6", {**ALL_DNS, **_exclusion(protocols=("tcp",))}, app("resolver", 53, **UDP), "dns"),
    (
        "udp only, udp",
        "O2",
        {**ALL_DNS, **_exclusion(protocols=("udp",))},
        app("resolver", 53, **UDP),
        "outside",
    ),
    ("udp only, tcp", "O6", {**ALL_DNS, **_exclusion(protocols=("udp",))}, app("resolver", 53), "dns"),
    ("udp 443 of the uid", "O2", {"udp443": "reject", **_exclusion()}, app(port=443, **UDP), "outside"),
    ("self-call of the uid", "O2", _exclusion(uids=port(PROXY)), proxy("own"), "app"),
    (
        "the second rule",
        "O2",
        {
            "exclude_outbound_ports_for_uids": (
                UidExclusion(uids=port(7)),
                UidExclusion(uids=port(1000), ports=port(80)),
            )
        },
        app(),
        "outside",
    ),
]

VIRTUAL = [
    ("of a guest", "O10", GUESTS, guest("service"), "outbound"),
    ("of a guest by prefix", "O10", {"virtual_interfaces": ("net+",)}, guest("service"), "outbound"),
    (
        "of a guest with gids",
        "O10",
        {**GUESTS, "include_outbound_gids": port(5)},
        guest("service"),
        "outbound",
    ),
    ("the proxy is down", "O10", {**GUESTS, "outbound_port": DEAD}, guest("service"), "refused"),
    ("to the pod", "O7", GUESTS, guest(), "app"),
    ("to the pod's other address", "O7", GUESTS, guest("own"), "app"),
    ("to the pod, loopback included", "O7", {**GUESTS, "include_loopback": True}, guest(), "app"),
    (
        "by an excluded interface",
        "I1",
        {**GUESTS, "exclude_interfaces": ("net1",)},
        guest("service"),
        "outside",
    ),
    (
        "to an excluded port",
        "O2",
        {**GUESTS, "exclude_outbound_ports": port(80)},
        guest("service"),
        "outside",
    ),
    ("udp dns", "O6", {**GUESTS, **ALL_DNS}, guest("resolver", 53, **UDP), "dns"),
    ("tcp dns", "O6", {**GUESTS, **ALL_DNS}, guest("resolver", 53), "dns"),
    (
        "udp dns, the proxy is down",
        "O6",
        {**GUESTS, **ALL_DNS, "dns_port": DEAD},
        guest("resolver", 53, **UDP),
        "refused",
    ),
    (
        "udp dns of another server",
        "O11",
        {**GUESTS, "dns": RESOLVER},
        guest("resolver2", 53, **UDP),
        "outside",
    ),
    ("to a loopback cidr", "O7", {**GUESTS, "loopback_cidrs": SERVICE}, guest("service"), "outside"),
    ("to an excluded cidr", "O8", {**GUESTS, "exclude_outbound_cidrs": SERVICE}, guest("service"), "outside"),
    (
        "to an included port",
        "O9",
        {**GUESTS, "include_outbound_ports": port(80), "include_outbound_cidrs": ()},
        guest("service"),
        "outbound",
    ),
    ("to a cidr not included", "O11", {**GUESTS, "include_outbound_cidrs": ()}, guest("service"), "outside"),
    ("udp 443 refused", "udp443", {**GUESTS, "udp443": "reject"}, guest("service", 443, **UDP), "refused"),
    ("outbound off", "O11", {**GUESTS, "outbound": "off"}, guest("service"), "outside"),
    ("inbound off", "O10", {**GUESTS, "inbound": "off"}, guest("service"), "outbound"),
    ("inbound by tproxy", "O10", {**GUESTS, "inbound": "tproxy"}, guest("service"), "outbound"),
    ("inbound by tproxy, to the pod", "O7", {**GUESTS, "inbound": "tproxy"}, guest(), "app"),
    ("inbound beside it", "I4", GUESTS, node(), "inbound"),
    (
        "inbound by tproxy, to a port like the proxy's",
        "O8",
        {**GUESTS, "inbound": "tproxy", "exclude_outbound_cidrs": SERVICE},
        guest("service", INBOUND_PORT),
        "outside",
    ),
    ("not virtual", "I5", {"include_inbound_ports": ()}, guest("service"), "outside"),
    (
        "not virtual, by tproxy, to somebody's port of the same number",
        "I5",
        {"inbound": "tproxy", "include_inbound_ports": ()},
        guest("service", INBOUND_PORT),
        "outside",
    ),
    ("not virtual, by tproxy, forwarded", "I4", {"inbound": "tproxy"}, guest("service"), "inbound"),
    ("IPv4 only, IPv6", "I5", GUESTS, guest("service"), "outside", (4,), (6,)),
]

# What is particular to a mode; the rows of INBOUND hold in both.
MODES = [
    ("inbound off", "I5", OFF, node(), "app"),
    ("inbound off, second interface", "I5", OFF, guest(), "app"),
    ("inbound off, outbound", "O10", OFF, app(), "outbound"),
    ("inbound off, self-call", "O4", OFF, proxy("own"), "inbound"),
    ("tproxy, outbound", "O10", TPROXY, app(), "outbound"),
    (
        "tproxy, outbound, included port",
        "O9",
        {**TPROXY, "include_outbound_ports": port(80)},
        app(),
        "outbound",
    ),
    ("tproxy, dns", "O6", {**TPROXY, **ALL_DNS}, app("resolver", 53, **UDP), "dns"),
    ("tproxy, self-call", "O4", TPROXY, proxy("own"), "inbound"),
    ("tproxy, self-call by gid", "O4", TPROXY, proxy("own", uid=1000), "inbound"),
    ("tproxy, self-call to 127.0.0.2", "O4", TPROXY, proxy("loopback2"), "inbound", (4, 6), (4,)),
    ("tproxy, self-call, the proxy is down", "O4", {**TPROXY, "inbound_port": DEAD}, proxy("own"), "refused"),
    (
        "tproxy, self-call without policy",
        "O5",
        {**TPROXY, "self_calls_to_inbound": False},
        proxy("own"),
        "app",
    ),
    ("tproxy, self-call to the tunnel", "O5", {**TPROXY, "tunnel_port": 15008}, proxy("own", 15008), "app"),
    ("tproxy, self-call to dns", "O5", {**TPROXY, **ALL_DNS}, proxy("own", 53), "app"),
    ("tproxy, self-call, outbound off", "O11", {**TPROXY, "outbound": "off"}, proxy("own"), "app"),
    (
        "tproxy, self-call to an excluded port",
        "O2",
        {**TPROXY, "exclude_outbound_ports": port(80)},
        proxy("own"),
        "app",
    ),
    ("tproxy, the proxy to loopback", "O5", TPROXY, proxy("loopback"), "app"),
    ("tproxy, passthrough", "O3", TPROXY, proxy("own", source="passthrough"), "app"),
    ("tproxy, inbound, outbound off", "I4", {**TPROXY, "outbound": "off"}, node(), "inbound"),
    ("tproxy, to oneself", "O7", TPROXY, app("own"), "app"),
    ("tproxy, to oneself, included", "O10", {**TPROXY, "include_loopback": True}, app("own"), "outbound"),
    ("tproxy, marked", "O3", TPROXY, proxy("own", kind={"mark": 1337}), "app"),
    (
        "tproxy, marked, as its client",
        "O3",
        TPROXY,
        proxy("own", source="public", kind={"mark": 1337, "foreign": True}),
        "app",
    ),
    (
        "tproxy, another mark and table",
        "I4",
        {**TPROXY, "tproxy_mark": 0x400, "tproxy_table": 77},
        node(),
        "inbound",
    ),
]

CASES = [
    *(Case(f"in, redirect: {line[0]}", *line[1:]) for line in INBOUND),
    *(
        Case(f"in, tproxy: {name}", row, {**changes, **TPROXY}, *rest)
        for name, row, changes, *rest in INBOUND
    ),
    *(Case(f"out: {line[0]}", *line[1:]) for line in OUTBOUND),
    *(Case(f"out, per uid: {line[0]}", *line[1:]) for line in PER_UID),
    *(Case(f"virtual: {line[0]}", *line[1:]) for line in VIRTUAL),
    *(Case(f"mode: {line[0]}", *line[1:]) for line in MODES),
]
