"""A pod, what it talks to, and what lives behind it, in three network namespaces.

    outside ── eth0  pod  net1 ── guest

`outside` and `guest` answer on every port of `PORTS` at any address: `outside` is the default route's far end,
`guest` is a second network's (the far end of an excluded interface) or a virtual machine behind a virtual one.
The pod runs the proxy's listeners, owned by the proxy's uid and gid, and the application's. Not a CNI chain.
"""

from dataclasses import asdict, dataclass
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING, Any, Self

from cni_plugin.backends import load
from cni_plugin.kernel.netns import entered
from cni_plugin.model.redirection import Redirection
from tests.lab.ground import Cgroup, placement
from tests.lab.namespace import Namespace

if TYPE_CHECKING:
    from cni_plugin.backends import Backend

PROXY = 1337
OUTBOUND, INBOUND, DNS = 15001, 15006, 15053
PROXY_PORTS = (OUTBOUND, INBOUND, DNS)
# Nobody listens here: a proxy that is not running.
DEAD = 15999
APP_PORTS = (53, 80, 443, 8080, 8085, 9090, 15008)
PORTS = APP_PORTS + PROXY_PORTS

# A name of an address, for IPv4 and for IPv6.
ADDRESSES = {
    "own": ("10.50.0.2", "fd00:50::2"),
    "own2": ("10.50.0.3", "fd00:50::3"),
    "own-net1": ("10.60.1.2", "fd00:60::2"),
    "node": ("10.50.0.1", "fd00:50::1"),
    "gateway-net1": ("10.60.1.1", "fd00:60::1"),
    "service": ("10.1.2.3", "2001:db8:1::3"),
    "service2": ("10.2.2.3", "2001:db8:2::3"),
    "public": ("93.184.216.34", "2606:2800:220::34"),
    "resolver": ("10.96.0.10", "2001:db8:96::a"),
    "resolver2": ("8.8.8.8", "2001:4860:4860::8888"),
    "guest": ("10.99.0.5", "fd00:99::5"),
    "loopback": ("127.0.0.1", "::1"),
    "loopback2": ("127.0.0.2", "::1"),
    "passthrough": ("127.0.0.6", "::6"),
}
NETWORK_1 = {4: "10.60.1.0/24", 6: "fd00:60::/64"}
GUESTS = {4: "10.99.0.0/16", 6: "fd00:99::/64"}
NODAD = {4: "", 6: " nodad"}
OWN_NAMES = ("own", "own2", "own-net1")


def address(name: str, family: int) -> str:
    """Return the address called `name` in IPv`family`; a literal address is returned as it is."""
    return ADDRESSES[name][family == 6] if name in ADDRESSES else name


def packed(text: str) -> bytes:
    """Return an address as its 4 or 16 bytes."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


OWN = tuple(packed(text) for name in OWN_NAMES for text in ADDRESSES[name])


@dataclass(frozen=True)
class Dial:
    """A client: whom it dials, who it is, and what kind of socket it uses."""

    to: str
    port: int
    protocol: str = "tcp"
    uid: int = 0
    gid: int = 0
    source: str = ""
    source_port: int = 0
    foreign: bool = False  # the source is not an address of the namespace
    timeout: float = 5
    mapped: bool = False  # an AF_INET6 socket to ::ffff:a.b.c.d
    unconnected: bool = False  # UDP by sendto
    nonblocking: bool = False
    fastopen: bool = False
    mptcp: bool = False
    device: str = ""  # SO_BINDTODEVICE
    mark: int = 0  # SO_MARK


@dataclass(frozen=True)
class Seen:
    """What a dial led to, seen from both ends. Addresses are (text, port)."""

    result: str  # connected | refused | timeout | an errno's name
    where: str = ""  # pod | outside | guest
    port: int = 0  # of the listener that answered
    tag: str = ""  # of the listener that answered
    original: tuple[str, int] | None = None  # SO_ORIGINAL_DST at the level of the listener's family
    original_v4: tuple[str, int] | None = None  # SO_ORIGINAL_DST at level 0
    at: tuple[str, int] | None = None  # getsockname of the accepted socket
    peer: tuple[str, int] | None = None  # the client, as the listener saw it
    peername: tuple[str, int] | None = None  # getpeername of the client
    sockname: tuple[str, int] | None = None  # getsockname of the client
    echo: str = ""
    syn_data: bool = False
    handle: int = -1

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        """Read a worker's answer; the listener's tag begins with its namespace."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in answer.items()}
        where, _, tag = plain.pop("tag", "").partition(":")
        return cls(where=where, tag=tag, **plain)


class Endpoint:
    """A namespace with a name, that dials and listens."""

    def __init__(self, name: str, namespace: Namespace) -> None:
        self.name = name
        self.namespace = namespace

    def dial(self, to: str, port: int, **kind: Any) -> Seen:
        """Dial once, and close."""
        return self.dial_all([Dial(to=to, port=port, **kind)])[0]

    def dial_all(self, dials: list[Dial]) -> list[Seen]:
        """Dial each in turn, in one request to the worker."""
        return [
            Seen.of(answer) for answer in self.namespace.ask("dial", specs=[asdict(dial) for dial in dials])
        ]

    def hold(self, to: str, port: int, **kind: Any) -> Seen:
        """Dial and keep the connection: `Seen.handle` names it."""
        return Seen.of(self.namespace.ask("hold", spec=asdict(Dial(to=to, port=port, **kind))))

    def echo(self, seen: Seen) -> str:
        """Send and receive on a held connection: "alive", or what went wrong."""
        return str(self.namespace.ask("echo", handle=seen.handle))

    def release(self, seen: Seen) -> None:
        """Close a held connection."""
        self.namespace.ask("release", handle=seen.handle)

    def listen(self, *ports: int, protocols: tuple[str, ...] = ("tcp", "udp"), **kind: Any) -> None:
        """Listen on `ports` in both families."""
        tag = f"{self.name}:{kind.pop('tag', '')}"
        families = kind.pop("families", (4, 6))
        specs = [
            {"protocol": protocol, "family": family, "port": port, "tag": tag, **kind}
            for port in ports
            for family in families
            for protocol in protocols
        ]
        self.namespace.ask("listen", specs=specs)

    def unlisten(self, *ports: int) -> None:
        """Close what listens on `ports`."""
        for port in ports:
            self.namespace.ask("unlisten", port=port)


class Pod(Endpoint):
    """The pod with its surroundings. `user` puts its netns into a child user namespace."""

    def __init__(self, user: bool = False) -> None:
        self.outside = Endpoint("outside", Namespace())
        self.guest = Endpoint("guest", Namespace())
        self.cgroup = Cgroup()
        super().__init__("pod", Namespace(user, self.cgroup))
        self.endpoints = {"pod": self, "outside": self.outside, "guest": self.guest}
        # By backend, and by what a redirection needs beside rules: what `clear` has to take away.
        self.programmed: dict[str, dict[tuple[object, ...], Redirection]] = {}
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The pod's netns as CNI_NETNS would name it."""
        return self.namespace.path

    def _build(self) -> None:
        # The kernel limits ICMP errors to a peer; so many refusals in a row come from tests only.
        common = {"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0"}
        # 0x1 | 0x2: client and server. 0x4 | 0x200: data in the SYN without asking for a cookie first.
        common |= {"net/ipv4/tcp_fastopen": "519", "net/ipv6/conf/default/accept_dad": "0"}
        far = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}
        forward = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
        for endpoint, values in ((self.outside, far), (self.guest, far), (self, forward)):
            endpoint.namespace.ask("sysctl", values={**common, **values})
        self.namespace.run(
            "ip", "-batch", "-", text=_pod_links(self.outside.namespace.pid, self.guest.namespace.pid)
        )
        self.outside.namespace.run("ip", "-batch", "-", text=_outside_links())
        self.guest.namespace.run("ip", "-batch", "-", text=_guest_links())
        self.outside.listen(*PORTS, transparent=True)
        self.guest.listen(*PORTS, transparent=True)
        self.listen(*APP_PORTS, uid=1000, gid=1000)
        self.listen(OUTBOUND, DNS, uid=PROXY, gid=PROXY)
        self.listen(INBOUND, uid=PROXY, gid=PROXY, transparent=True)

    def backend(self, name: str) -> "Backend":
        """Return the backend `name`, placed in this pod's cgroup."""
        return load(name, placement=placement(self.cgroup))

    def add(self, backend: str, redirection: Redirection, families: tuple[int, ...] = (4, 6)) -> None:
        """Have `backend` make `redirection` true, as an ADD does."""
        r = redirection
        beside = (r.inbound, r.tproxy_mark, r.tproxy_table, r.passthrough_sources)
        self.programmed.setdefault(backend, {})[beside] = redirection
        with entered(self.path):
            self.backend(backend).add(redirection, families)

    def program(self, backend: str, redirection: Redirection, families: tuple[int, ...] = (4, 6)) -> None:
        """Add where others were programmed before: only this backend's rules are left, and no flow of before."""
        for other in [name for name in self.programmed if name != backend]:
            self.clear(other)
        self.add(backend, redirection, families)
        self.namespace.ask("forget_flows")

    def clear(self, *backends: str) -> None:
        """Take away what `backends` (default: all that were used) made, as a DEL does."""
        for name in backends or tuple(self.programmed):
            for redirection in self.programmed.pop(name).values():
                self.delete(name, redirection)

    def delete(self, backend: str, redirection: Redirection) -> None:
        """Have `backend` take `redirection` away, as a DEL does."""
        with entered(self.path):
            self.backend(backend).delete(redirection)

    def close(self) -> None:
        """End every process and namespace of the pod."""
        if "ebpf" in self.programmed:
            # Its links would stay pinned, with nothing to run for.
            self.clear("ebpf")
        for endpoint in self.endpoints.values():
            endpoint.namespace.close()
        self.cgroup.close()


def _pod_links(outside: int, guest: int) -> str:
    lines = ["link set lo up"]
    for device, far_end, names in (("eth0", outside, ("own", "own2")), ("net1", guest, ("own-net1",))):
        lines.append(f"link add {device} type veth peer name {device} netns {far_end}")
        for name in names:
            lines.append(f"addr add {address(name, 4)}/24 dev {device}")
            lines.append(f"addr add {address(name, 6)}/64 dev {device} nodad")
        lines.append(f"link set {device} up")
    for family, network in GUESTS.items():
        # Which of its addresses a client gets is the test's choice, not the order the kernel keeps them in.
        for name, way, device, source in (
            ("default", "node", "eth0", "own"),
            (network, "gateway-net1", "net1", "own-net1"),
        ):
            via, chosen = address(way, family), address(source, family)
            lines.append(f"route add {name} via {via} dev {device} src {chosen}")
    return "\n".join(lines) + "\n"


def _outside_links() -> str:
    """The node and the world beyond: the way to the guest is the pod, every other address is itself (AnyIP)."""
    lines = ["link set lo up", "link set eth0 up"]
    for family, length, everything in ((4, 24, "0.0.0.0/0"), (6, 64, "::/0")):
        lines.append(f"addr add {address('node', family)}/{length} dev eth0{NODAD[family]}")
        for network in (NETWORK_1[family], GUESTS[family]):
            lines.append(f"route add {network} via {address('own', family)} dev eth0")
        lines.append(f"route add local {everything} dev lo table main metric 4096")
    return "\n".join(lines) + "\n"


def _guest_links() -> str:
    """The second network: it is every address of `GUESTS`, and the way to the rest is the pod."""
    lines = ["link set lo up", "link set net1 up"]
    for family, length in ((4, 24), (6, 64)):
        lines.append(f"addr add {address('gateway-net1', family)}/{length} dev net1{NODAD[family]}")
        lines.append(f"route add local {GUESTS[family]} dev lo table main")
        lines.append(f"route add default via {address('own-net1', family)} dev net1")
    return "\n".join(lines) + "\n"
