"""A redirection as the eBPF programs read it: one policy, and facts about addresses, ports, ids, interfaces.

Pure: from values to bytes. The structures are those of bpf/policy.h; a test holds them to the objects' BTF.
A trie answers with its longest match alone, so a prefix also carries what is true of those that contain it.
"""

from _struct import pack, unpack

from cni_plugin.backends.common import Unsupported
from cni_plugin.kernel.network import Network
from cni_plugin.model.redirection import ALL_IDS, Prefixes, Redirection, Spans
from cni_plugin.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ids = Callable[[str, Spans], Spans]

# policy.flags
ON_IPV4, ON_IPV6, ON_INBOUND, ON_OUTBOUND, TPROXY, SELF_CALLS = 1, 2, 4, 8, 16, 32
INCLUDE_LOOPBACK, DNS_TCP, DNS_UDP, DNS_ANY, REJECT_QUIC, ALL_GIDS = 64, 128, 256, 512, 1024, 2048
# fact.bits
EXCLUDE_OUT, INCLUDE_OUT, EXCLUDE_IN, INCLUDE_IN, PROXY = 1, 2, 4, 8, 16
LOOPBACK_CIDR, DNS_SERVER, PASSTHROUGH, STAYS, BY_EXCLUDED = 32, 64, 128, 256, 512
# fact_key.kind
ADDRESS, PORT, UID, GID, INTERFACE = 1, 2, 3, 4, 5
# Of cookie and kind, which are compared whole.
KIND_BITS = 96
# The facts in force, and those of before or of an ADD that is on its way.
GENERATIONS = (1, 2)
# fact.exclusions is one word.
EXCLUSIONS = 64

FACT_KEY = "=IQ4s16s"
FACT = "=QI4x16s"
POLICY = "=QQQQIIIHHHH16s16s4x"
_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK = {4: b"\x7f\0\0\1", 6: bytes(15) + b"\1"}
_STAYS = {4: (0x7F << 24, 8), 6: (1, 128)}


class Policy(Value):
    """`struct policy`, field by field."""

    cookie: int
    cgroup: int
    tcp_exclusions: int
    udp_exclusions: int
    generation: int
    flags: int
    tproxy_mark: int
    inbound_port: int
    outbound_port: int
    dns_port: int
    tunnel_port: int
    dns4: bytes
    dns6: bytes

    def to_bytes(self) -> bytes:
        """Return it as the programs read it."""
        return pack(POLICY, *self.fields().values())

    @classmethod
    def of(cls, data: bytes) -> "Policy":
        """Return it from a map's value."""
        return cls(**dict(zip(cls.__annotations__, unpack(POLICY, data), strict=True)))


def policy(
    redirection: Redirection, families: tuple[int, ...], cookie: int, cgroup: int, generation: int
) -> Policy:
    """Return the policy of the sandbox `cookie`, whose facts are those of `generation`."""
    r = redirection
    exclusions = {
        protocol: sum(
            1 << number
            for number, rule in enumerate(r.exclude_outbound_ports_for_uids)
            if protocol in rule.protocols
        )
        for protocol in ("tcp", "udp")
    }
    resolvers = {4: _LOOPBACK[4], 6: _LOOPBACK[6]}
    resolvers |= {4 if len(address) == 4 else 6: address for address in r.dns_address}
    return Policy(
        cookie=cookie,
        cgroup=cgroup,
        tcp_exclusions=exclusions["tcp"],
        udp_exclusions=exclusions["udp"],
        generation=generation,
        flags=_flags(r, families),
        tproxy_mark=r.tproxy_mark,
        inbound_port=r.inbound_port,
        outbound_port=r.outbound_port,
        dns_port=r.dns_port,
        tunnel_port=r.tunnel_port,
        dns4=address(resolvers[4]),
        dns6=address(resolvers[6]),
    )


def _flags(r: Redirection, families: tuple[int, ...]) -> int:
    return sum(
        flag
        for flag, on in (
            (ON_IPV4, 4 in families),
            (ON_IPV6, 6 in families),
            (ON_INBOUND, r.inbound != "off"),
            (ON_OUTBOUND, r.outbound != "off"),
            (TPROXY, r.inbound == "tproxy"),
            (SELF_CALLS, r.self_calls_to_inbound),
            (INCLUDE_LOOPBACK, r.include_loopback),
            (DNS_TCP, bool(r.dns) and "tcp" in r.dns_protocols),
            (DNS_UDP, bool(r.dns) and "udp" in r.dns_protocols),
            (DNS_ANY, bool(r.dns)),
            (REJECT_QUIC, r.udp443 == "reject"),
            (ALL_GIDS, r.include_outbound_gids == ALL_IDS),
        )
        if on
    )


def address(packed: bytes) -> bytes:
    """Return 16 bytes: an IPv4 address is ::ffff:a.b.c.d to the programs."""
    return _MAPPED + packed if len(packed) == 4 else packed


def can_express(redirection: Redirection, network: Network) -> None:
    """Raise `Unsupported` for what the programs have no words for."""
    if redirection.virtual_interfaces:
        raise Unsupported("virtualInterfaces: sockets of guests are not in this kernel's hands")
    if len(redirection.exclude_outbound_ports_for_uids) > EXCLUSIONS:
        raise Unsupported(f"excludeOutboundPortsForUids: more than {EXCLUSIONS} entries")
    if redirection.exclude_interfaces and not network.plain:
        raise Unsupported("excludeInterfaces: policy routing decides by which interface a packet leaves")


def facts(redirection: Redirection, network: Network, ids: "Ids") -> "dict[bytes, bytes]":
    """Return what is known: by keys of no sandbox yet, see `placed`.

    `ids(kind, spans)` turns the sandbox's uids or gids into the machine's, which the programs see.
    """
    found = _numbers(redirection, ids)
    for index, name in network.interfaces.items():
        if _excluded(redirection, name):
            found[_key(INTERFACE, index.to_bytes(4, "big"), 32)] = pack(FACT, 0, EXCLUDE_IN, bytes(16))
    for family in (4, 6):
        found |= _addresses(redirection, network, family)
    return found


def _key(kind: int, data: bytes, length: int) -> bytes:
    return pack(FACT_KEY, KIND_BITS + length, 0, kind.to_bytes(4, "big"), data)


def placed(cookie: int, generation: int, found: "dict[bytes, bytes]") -> "dict[bytes, bytes]":
    """Return the facts with the keys they have in the map, as those of a sandbox's generation."""
    owner = pack("=Q", cookie) + generation.to_bytes(3, "big")
    return {key[:4] + owner + key[15:]: value for key, value in found.items()}


def unplaced(key: bytes) -> bytes:
    """Return the key that `facts` gave it."""
    return key[:4] + bytes(11) + key[15:]


def edges(cookie: int, generation: int) -> "tuple[bytes, bytes]":
    """Return the keys a walk meets first and last of a generation: its leftmost leaf, and its root."""
    kind = (generation << 8).to_bytes(4, "big")
    return (
        pack(FACT_KEY, KIND_BITS + 128, cookie, kind, bytes(16)),
        pack(FACT_KEY, KIND_BITS - 8, cookie, kind, bytes(16)),
    )


def describe(key: bytes) -> str:
    """Return a key in words for people."""
    length, _, kind, data = unpack(FACT_KEY, key)
    name = ("edge", "address", "port", "uid", "gid", "interface")[kind[3]]
    return f"fact: {name} {data.hex()}/{length - KIND_BITS}"


def _excluded(r: Redirection, interface: str) -> bool:
    return any(
        interface.startswith(name[:-1]) if name.endswith("+") else interface == name
        for name in r.exclude_interfaces
    )


# -- ports and ids ---------------------------------------------------------------------------------


def _numbers(r: Redirection, ids: "Ids") -> "dict[bytes, bytes]":
    rules = r.exclude_outbound_ports_for_uids
    every_gid = r.include_outbound_gids == ALL_IDS
    marks: list[tuple[int, Spans, int]] = [
        (PORT, r.exclude_outbound_ports, EXCLUDE_OUT),
        (PORT, r.include_outbound_ports, INCLUDE_OUT),
        (PORT, r.exclude_inbound_ports, EXCLUDE_IN),
        (PORT, r.include_inbound_ports, INCLUDE_IN),
        (UID, ids("uid", r.proxy_uids), PROXY),
        (GID, ids("gid", r.proxy_gids), PROXY),
        (GID, ids("gid", r.exclude_outbound_gids), EXCLUDE_OUT),
        (GID, () if every_gid else ids("gid", r.include_outbound_gids), INCLUDE_OUT),
    ]
    for number, rule in enumerate(rules):
        marks.append((PORT, rule.ports, 1 << (32 + number)))
        marks.append((UID, ids("uid", rule.uids), 1 << (32 + number)))
    found = {}
    for kind, size in ((PORT, 2), (UID, 4), (GID, 4)):
        for low, high, mark in _ranges([(spans, mark) for k, spans, mark in marks if k == kind]):
            value = pack(FACT, mark >> 32, mark & 0xFFFFFFFF, bytes(16))
            for start, length in _blocks(low, high, size * 8):
                found[_key(kind, start.to_bytes(size, "big"), length)] = value
    return found


def _ranges(marks: "list[tuple[Spans, int]]") -> "Iterator[tuple[int, int, int]]":
    """Yield (low, high, marks) of every stretch of numbers with the same marks; not those with none."""
    changes: dict[int, int] = {}
    for spans, mark in marks:
        for low, high in spans:
            changes[low] = changes.get(low, 0) ^ mark
            changes[high + 1] = changes.get(high + 1, 0) ^ mark
    now, since = 0, 0
    for point in sorted(changes):
        if now and point > since:
            yield since, point - 1, now
        now, since = now ^ changes[point], point


def _blocks(low: int, high: int, bits: int) -> "Iterator[tuple[int, int]]":
    """Yield (start, prefix length) of the fewest aligned blocks that cover low..high."""
    while low <= high:
        size = (low & -low) or 1 << bits
        while low + size - 1 > high:
            size >>= 1
        yield low, bits - size.bit_length() + 1
        low += size


# -- addresses -------------------------------------------------------------------------------------


def _addresses(r: Redirection, network: Network, family: int) -> "dict[bytes, bytes]":
    size = 4 if family == 4 else 16
    bits: dict[tuple[int, int], int] = {(0, 0): 0}
    for prefixes, bit in (
        (r.loopback_cidrs, LOOPBACK_CIDR),
        (r.exclude_outbound_cidrs, EXCLUDE_OUT),
        (r.include_outbound_cidrs, INCLUDE_OUT),
        (r.exclude_inbound_cidrs, EXCLUDE_IN),
        (r.dns, DNS_SERVER),
        (r.passthrough_sources, PASSTHROUGH),
    ):
        for where in _of_size(prefixes, size):
            bits[where] = bits.get(where, 0) | bit
    # Where a packet goes: bits, and the address it is sent with. A local route is before all others.
    ways: dict[tuple[int, int], tuple[int, bytes]] = {
        _STAYS[family]: (_way(r, "lo") | STAYS, _LOOPBACK[family])
    }
    for route in network.routes:
        if len(route.network) == size:
            where = (int.from_bytes(route.network), route.length)
            name = "lo" if route.local else network.interfaces.get(route.interface, "")
            way = (_way(r, name) | (STAYS if route.local else 0), route.source)
            if where not in ways or (route.local and not ways[where][0] & STAYS):
                ways[where] = way
    return _inherited(bits, ways, size)


def _of_size(prefixes: Prefixes, size: int) -> "Iterator[tuple[int, int]]":
    for network, length in prefixes:
        if len(network) == size:
            yield int.from_bytes(network), length


def _way(r: Redirection, interface: str) -> int:
    return BY_EXCLUDED if _excluded(r, interface) else 0


def _inherited(
    bits: "dict[tuple[int, int], int]", ways: "dict[tuple[int, int], tuple[int, bytes]]", size: int
) -> "dict[bytes, bytes]":
    """Return every prefix with its own bits and those of the prefixes around it."""
    found = {}
    around: list[tuple[int, int, int, tuple[int, bytes]]] = []
    for network, length in sorted({*bits, *ways}):
        while around and network >> (size * 8 - around[-1][1]) != around[-1][0] >> (size * 8 - around[-1][1]):
            around.pop()
        outer_bits, outer_way = around[-1][2:] if around else (0, (0, b""))
        own = bits.get((network, length), 0) | outer_bits
        way = ways.get((network, length), outer_way)
        if outer_way[0] & STAYS:
            way = outer_way
        around.append((network, length, own, way))
        mapped = address(network.to_bytes(size, "big"))
        source = address(way[1]) if way[1] else bytes(16)
        found[_key(ADDRESS, mapped, 128 - size * 8 + length)] = pack(FACT, 0, own | way[0], source)
    return found
