"""The contract as a pure function: what becomes of one connection or datagram under a `Redirection`.

The tables below are those of docs/ARCHITECTURE.md, "The contract", row by row, first match wins. Read by
`mesh-redirect explain --probe` and by the behaviour tests. Not a backend: no rule and no kernel in here.

Long because it is the whole table in one place, a sentence for people in every row.
"""

from _socket import AF_INET, AF_INET6, inet_ntop

from cni_plugin.model.redirection import ALL_IDS, Prefixes, Redirection, Spans
from cni_plugin.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PASS = "pass"
REDIRECT = "redirect"
REJECT = "reject"


class Probe(Value):
    """One connection (tcp) or first datagram (udp) as the pod's kernel meets it.

    Addresses are packed, 4 or 16 bytes. `source` b"" is "the kernel chooses". `interface` is the one it
    arrives by ("in") or leaves by when it does not stay on loopback ("out"). Ids are the sandbox's own.
    """

    direction: str  # in | out
    protocol: str  # tcp | udp
    destination: bytes
    port: int
    source: bytes = b""
    uid: int = 0
    gid: int = 0
    interface: str = "eth0"
    own_addresses: tuple[bytes, ...] = ()
    mark: int = 0  # SO_MARK of its socket


class Outcome(Value):
    """The row that decides, what it does, the proxy's port for `redirect`, and one sentence for people."""

    row: str  # I1..I5, O1..O11, udp443
    action: str  # pass | redirect | reject
    why: str
    port: int = 0


def _holds(spans: Spans, number: int) -> bool:
    return any(low <= number <= high for low, high in spans)


def _within(address: bytes, prefixes: Prefixes) -> bool:
    for network, length in prefixes:
        shift = 8 * len(network) - length
        if (
            len(network) == len(address)
            and int.from_bytes(network) >> shift == int.from_bytes(address) >> shift
        ):
            return True
    return False


def _named(interface: str, names: tuple[str, ...]) -> bool:
    """A name ending in "+" stands for every interface that begins with it, as in iptables."""
    return any(interface.startswith(name[:-1]) if name.endswith("+") else interface == name for name in names)


def _is_loopback(address: bytes) -> bool:
    return address[:1] == b"\x7f" if len(address) == 4 else address == bytes(15) + b"\1"


def _stays(p: Probe) -> bool:
    """It stays on loopback: to 127/8, to ::1, or to one of the pod's own addresses."""
    return _is_loopback(p.destination) or p.destination in p.own_addresses


def _from_inside(p: Probe) -> bool:
    return p.source in p.own_addresses or _is_loopback(p.source)


def _excluded_for_uid(r: Redirection, p: Probe) -> bool:
    return any(
        _holds(rule.uids, p.uid) and _holds(rule.ports, p.port) and p.protocol in rule.protocols
        for rule in r.exclude_outbound_ports_for_uids
    )


def _proxy_owns(r: Redirection, p: Probe) -> bool:
    return _holds(r.proxy_uids, p.uid) or _holds(r.proxy_gids, p.gid)


def _self_call(r: Redirection, p: Probe) -> bool:
    """Its port is neither the proxy's tunnel nor its DNS: these never meet inbound policy."""
    exempt = p.port == r.tunnel_port or (r.dns != () and p.port == 53)
    to_itself = _stays(p) and not _within(p.destination, r.loopback_cidrs)
    return r.self_calls_to_inbound and p.protocol == "tcp" and _proxy_owns(r, p) and to_itself and not exempt


def _captured_dns(r: Redirection, p: Probe) -> bool:
    return p.port == 53 and p.protocol in r.dns_protocols and _within(p.destination, r.dns)


def _included_port(r: Redirection, p: Probe) -> bool:
    return p.protocol == "tcp" and _holds(r.include_outbound_ports, p.port)


def _included_cidr(r: Redirection, p: Probe) -> bool:
    return p.protocol == "tcp" and _within(p.destination, r.include_outbound_cidrs)


def _quic(r: Redirection, p: Probe) -> bool:
    """HTTP/3 that, were it TCP, rows O9 and O10 would send to the proxy."""
    over_tcp = p.replace(protocol="tcp")
    wanted = r.udp443 == "reject" and p.protocol == "udp" and p.port == 443
    return wanted and (_included_port(r, over_tcp) or _included_cidr(r, over_tcp))


# A row is (its name, the condition, what then: "pass", "reject" or the Redirection's field that holds the
# proxy's port, the sentence for people). A row with several reasons has several lines.
Row = tuple[str, "Callable[[Redirection, Probe], bool]", str, str]

_I1: Row = (
    "I1",
    lambda r, p: _named(p.interface, r.exclude_interfaces),
    PASS,
    "It arrives by {interface}, which is in excludeInterfaces.",
)
INBOUND: tuple[Row, ...] = (
    ("I5", lambda r, p: r.inbound == "off", PASS, "Inbound redirection is off."),
    (
        "I5",
        lambda r, p: _from_inside(p),
        PASS,
        "It comes from the pod itself ({source}): that is not inbound traffic.",
    ),
    _I1,
    (
        "I2",
        lambda r, p: _within(p.source, r.exclude_inbound_cidrs),
        PASS,
        "Its source {source} is in excludeInboundCidrs.",
    ),
    (
        "I3",
        lambda r, p: _holds(r.exclude_inbound_ports, p.port),
        PASS,
        "Port {port} is in excludeInboundPorts.",
    ),
    (
        "I3",
        lambda r, p: r.tunnel_port == p.port,
        PASS,
        "Port {port} is the mesh's tunnel port: the proxy listens there itself.",
    ),
    (
        "I4",
        lambda r, p: p.protocol == "tcp" and _holds(r.include_inbound_ports, p.port),
        "inbound_port",
        "Inbound TCP to port {port} is in includeInboundPorts: it goes to the proxy's port {listener}.",
    ),
    ("I5", lambda r, p: p.protocol != "tcp", PASS, "Only TCP is redirected inbound, and this is {PROTOCOL}."),
    ("I5", lambda r, p: True, PASS, "Port {port} is not in includeInboundPorts."),
)

_OFF: Row = ("O11", lambda r, p: r.outbound == "off", PASS, "Outbound redirection is off.")
_PORT: Row = (
    "O2",
    lambda r, p: _holds(r.exclude_outbound_ports, p.port),
    PASS,
    "Port {port} is in excludeOutboundPorts.",
)
_DNS: Row = (
    "O6",
    _captured_dns,
    "dns_port",
    "DNS to {destination} is captured: it goes to the proxy's port {listener}.",
)
_LOOPBACK_CIDR: Row = (
    "O7",
    lambda r, p: _within(p.destination, r.loopback_cidrs),
    PASS,
    "Its destination {destination} is in loopbackCidrs.",
)
_DESTINATIONS: tuple[Row, ...] = (
    (
        "O8",
        lambda r, p: _within(p.destination, r.exclude_outbound_cidrs),
        PASS,
        "Its destination {destination} is in excludeOutboundCidrs.",
    ),
    (
        "O9",
        _included_port,
        "outbound_port",
        "Port {port} is in includeOutboundPorts: it goes to the proxy's port {listener}.",
    ),
    (
        "O10",
        _included_cidr,
        "outbound_port",
        "Its destination {destination} is in includeOutboundCidrs: it goes to the proxy's port {listener}.",
    ),
    (
        "udp443",
        _quic,
        REJECT,
        "udp443 is reject: HTTP/3 to {destination} is refused, so its client falls back to TCP.",
    ),
    (
        "O11",
        lambda r, p: p.protocol != "tcp",
        PASS,
        "Only TCP and captured DNS are redirected, and this is {PROTOCOL}.",
    ),
    (
        "O11",
        lambda r, p: True,
        PASS,
        "Neither its destination {destination} nor its port {port} is included for redirection.",
    ),
)
OUTBOUND: tuple[Row, ...] = (
    _OFF,
    (
        "O1",
        lambda r, p: _named("lo" if _stays(p) else p.interface, r.exclude_interfaces),
        PASS,
        "It leaves by {interface}, which is in excludeInterfaces.",
    ),
    _PORT,
    (
        "O2",
        _excluded_for_uid,
        PASS,
        "{PROTOCOL} port {port} is in excludeOutboundPortsForUids for uid {uid}.",
    ),
    (
        "O3",
        lambda r, p: _within(p.source, r.passthrough_sources),
        PASS,
        "Its source {source} is in passthroughSources: the proxy is handing it on to the application.",
    ),
    (
        "O3",
        lambda r, p: r.inbound == "tproxy" and p.mark == r.tproxy_mark,
        PASS,
        "It carries tproxyMark ({mark}): the proxy is handing it on under its client's address.",
    ),
    (
        "O4",
        _self_call,
        "inbound_port",
        "The proxy calls its own pod ({destination}): it goes to the proxy's inbound port {listener}, "
        "so that inbound policy holds for it too.",
    ),
    (
        "O5",
        _proxy_owns,
        PASS,
        "It belongs to the proxy (uid {uid}, gid {gid}; proxyUids, proxyGids).",
    ),
    (
        "O5",
        lambda r, p: _holds(r.exclude_outbound_gids, p.gid),
        PASS,
        "Its gid {gid} is in excludeOutboundGids.",
    ),
    (
        "O5",
        lambda r, p: r.include_outbound_gids != ALL_IDS and not _holds(r.include_outbound_gids, p.gid),
        PASS,
        "Its gid {gid} is not in includeOutboundGids.",
    ),
    _DNS,
    _LOOPBACK_CIDR,
    (
        "O7",
        lambda r, p: _stays(p) and not r.include_loopback,
        PASS,
        "It stays on loopback ({destination}) and includeLoopback is off.",
    ),
    *_DESTINATIONS,
)

# Guests behind an interface of virtualInterfaces: their traffic is outbound traffic that no process owns.
VIRTUAL: tuple[Row, ...] = (
    _OFF,
    _I1,
    _PORT,
    _DNS,
    _LOOPBACK_CIDR,
    ("O7", lambda r, p: _stays(p), PASS, "It is for the pod itself ({destination})."),
    *_DESTINATIONS,
)


def outcome(redirection: Redirection, families: tuple[int, ...], probe: Probe) -> Outcome:
    """Say what becomes of `probe`: the first row that matches, as the contract orders them.

    `families` are the IP versions that are programmed, as `effective_families` returns them.
    """
    family = 4 if len(probe.destination) == 4 else 6
    if family not in families:
        row = "I5" if probe.direction == "in" else "O11"
        return Outcome(row=row, action=PASS, why=f"IPv{family} is not redirected in this pod (families).")
    if probe.direction == "out":
        table = OUTBOUND
    elif _named(probe.interface, redirection.virtual_interfaces):
        table = VIRTUAL
    else:
        table = INBOUND
    row, _, then, why = next(line for line in table if line[1](redirection, probe))
    action = then if then in (PASS, REJECT) else REDIRECT
    port = getattr(redirection, then) if action == REDIRECT else 0
    return Outcome(row=row, action=action, port=port, why=why.format(**_words(probe, port)))


def _words(probe: Probe, listener: int) -> "dict[str, object]":
    def text(address: bytes) -> str:
        if not address:
            return "(chosen by the kernel)"
        return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)

    return {
        "destination": text(probe.destination),
        "source": text(probe.source),
        "port": probe.port,
        "PROTOCOL": probe.protocol.upper(),
        "uid": probe.uid,
        "gid": probe.gid,
        "listener": listener,
        "mark": probe.mark,
        "interface": "lo" if probe.direction == "out" and _stays(probe) else probe.interface,
    }
