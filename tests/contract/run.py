"""One dial against one programmed pod, and what must be true of every dial that ends where it should.

Not the table: what is common to all its lines, the "always" list of the contract.
"""

from cni_plugin.model.contract import Probe
from cni_plugin.model.redirection import Redirection
from tests.contract.table import BASE, Case, Who
from tests.lab.topology import DNS, INBOUND, OUTBOUND, OWN, OWN_NAMES, Dial, Pod, Seen, address, packed

LISTENERS = {"inbound": INBOUND, "outbound": OUTBOUND, "dns": DNS}


def redirection(case: Case) -> Redirection:
    """Return the redirection of a line of the table."""
    return BASE.replace(**case.changes)


def dial(who: Who, family: int) -> Dial:
    """Return a line's dial with the addresses of `family`."""
    source = address(who.source, family) if who.source else ""
    foreign = {"foreign": True} if source and who.place != "pod" else {}
    owner = {"uid": who.uid, "gid": who.gid} if who.place == "pod" else {}
    return Dial(
        address(who.to, family), who.port, who.protocol, source=source, **owner, **foreign, **who.kind
    )


def chosen_source(who: Who, family: int) -> str:
    """Return the source the kernel gives an unbound client in the lab's topology."""
    if who.place != "pod":
        return "node" if who.place == "outside" else "gateway-net1"
    if who.to.startswith("loopback"):
        return "loopback"
    if who.to in OWN_NAMES:
        # IPv4 prefers the first address of the interface, IPv6 the address that is dialled.
        return "own" if family == 4 and who.to == "own2" else who.to
    return "own-net1" if who.to == "guest" else "own"


def probe(who: Who, family: int) -> Probe:
    """Return the same dial as the oracle is asked about it."""
    inside = who.place == "pod"
    source = who.source or chosen_source(who, family)
    return Probe(
        direction="out" if inside else "in",
        protocol=who.protocol,
        destination=packed(address(who.to, family)),
        port=who.port,
        source=packed(address(source, family)),
        uid=who.uid,
        gid=who.gid,
        interface="net1" if who.place == "guest" or (inside and who.to == "guest") else "eth0",
        own_addresses=OWN,
        mark=who.kind.get("mark", 0),
    )


def where_it_ended(seen: Seen, dialled: int) -> str:
    """Return a table's word for where a dial ended; a full account where the table has none."""
    if seen.result != "connected":
        return seen.result
    for name, port in LISTENERS.items():
        if (seen.where, seen.port) == ("pod", port) and port != dialled:
            return name
    if seen.port != dialled:
        return f"{seen.where} port {seen.port}"
    return "app" if seen.where == "pod" else seen.where


def assert_both_ends_are_told_the_truth(seen: Seen, who: Who, family: int, redirected: Redirection) -> None:
    """Hold a connected dial against the contract's "always" list."""
    dialled = (address(who.to, family), who.port)
    assert seen.peername == dialled, "the client must see the address it dialled"
    assert seen.sockname is not None
    assert seen.peer is not None
    unbound = who.kind.get("unconnected", False)
    if who.place == "pod" and not unbound:
        # A proxy in tproxy mode may have borrowed its client's address, the only other one it can have.
        expected = (
            {packed(address(who.source, family))}
            if who.source
            else {*OWN, packed(address("loopback", family))}
        )
        assert packed(seen.sockname[0]) in expected, "the client must see its own pod address"
    if not unbound:
        assert seen.peer == seen.sockname, "the listener must see the client's own address"
    if who.protocol == "tcp" and seen.port != who.port:
        transparent = seen.port == INBOUND and redirected.inbound == "tproxy"
        # A proxy in tproxy mode reads the address its socket has; for its own self-calls either is right.
        learned = (seen.at, seen.original) if transparent else (seen.original,)
        assert dialled in learned, "the proxy must learn the original destination"
        if transparent and who.place != "pod":
            assert seen.at == dialled, "getsockname must be the original destination under tproxy"
    elif who.protocol == "tcp":
        assert seen.at == dialled, "a connection that passes arrives where it was sent"


class Programmer:
    """Programs a pod only when backend, redirection or families differ from what is there."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.now: tuple[object, ...] = ()

    def __call__(self, backend: str, wanted: Redirection, families: tuple[int, ...]) -> None:
        if self.now != (backend, wanted, families):
            self.now = ()
            self.pod.program(backend, wanted, families)
            self.now = (backend, wanted, families)
