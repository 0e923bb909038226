"""Random redirections and random probes: nftables, iptables, ebpf and the oracle agree.

300 examples in the normal run, 20,000 with `make fuzz` (HYPOTHESIS_PROFILE=fuzz). An example programs each backend
once and dials several times. A failure prints its blob; the example database replays it first the next time.
"""

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st

from cni_plugin.model.contract import PASS, REJECT, Outcome, outcome
from cni_plugin.model.redirection import (
    ALL_IDS,
    ALL_PORTS,
    ANYWHERE,
    LOOPBACK,
    PASSTHROUGH,
    Prefixes,
    Redirection,
    Spans,
    UidExclusion,
)
from tests.contract.run import dial, probe
from tests.contract.table import Who
from tests.lab.need import need
from tests.lab.topology import OWN_NAMES, PORTS, PROXY, Pod, Seen

# Every value below is near something a probe can hit: its address, its port, its owner, or just beside it.
NETWORKS = (
    *(
        "10.1.2.3/32",
        "10.1.0.0/16",
        "10.0.0.0/8",
        "10.2.2.0/24",
        "93.184.0.0/15",
        "10.99.0.0/16",
        "10.50.0.0/24",
    ),
    *(
        "10.50.0.1/32",
        "10.60.1.0/24",
        "10.96.0.10/32",
        "8.8.8.8/32",
        "0.0.0.0/0",
        "128.0.0.0/1",
        "100.64.0.0/10",
    ),
    *(
        "2001:db8:1::3/128",
        "2001:db8:1::/48",
        "2001:db8::/32",
        "2606:2800::/29",
        "fd00:99::/64",
        "fd00:50::/64",
    ),
    *("fd00:50::1/128", "fd00::/8", "2001:db8:96::a/128", "2001:4860:4860::8888/128", "::/0", "8000::/1"),
)
PORT_SPANS = (
    (0, 52),
    (53, 53),
    (80, 80),
    (81, 442),
    (443, 443),
    (8000, 8084),
    (8085, 8100),
    (9090, 9090),
    (15001, 15008),
)
BACKENDS = ("nftables", "iptables", "ebpf")
IDS = (0, 7, 1000, 1001, PROXY, 70000, 0xFFFFFFFE)
OWNERS = (1000, 1000, 1000, PROXY, *IDS)


def merged(spans: list[tuple[int, int]]) -> Spans:
    """Return spans sorted, disjoint and merged where they touch, as model.parse makes them."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return tuple(result)


def disjoint(texts: list[str]) -> Prefixes:
    """Return prefixes sorted, without those that another contains, as model.parse makes them."""
    networks = sorted(
        {ip_network(text) for text in texts}, key=lambda n: (n.version, n.network_address, n.prefixlen)
    )
    kept: list = []
    for network in networks:
        if not (kept and kept[-1].version == network.version and network.subnet_of(kept[-1])):
            kept.append(network)
    return tuple((network.network_address.packed, network.prefixlen) for network in kept)


some_ports = st.lists(st.sampled_from(PORT_SPANS), min_size=1, max_size=4).map(merged)
some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=3).map(
    lambda found: merged([(i, i) for i in found])
)
ports = some_ports | st.just(())
ids = some_ids | st.just(())
prefixes = st.lists(st.sampled_from(NETWORKS), max_size=4).map(disjoint)
interfaces = st.lists(st.sampled_from(("net1", "net+", "eth0", "lo", "eth7")), max_size=2, unique=True).map(
    tuple
)
exclusions = st.builds(
    UidExclusion,
    uids=some_ids,
    ports=some_ports,
    protocols=st.sampled_from((("tcp",), ("udp",), ("tcp", "udp"))),
)


def mostly(usual: object, strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Leave a field as it usually is in most of the examples: else every probe ends at the first rows."""
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), strategy)


# The proxy of the lab runs as PROXY:PROXY, so one of the two sets holds it.
owners = st.sampled_from(
    (
        {"proxy_uids": ((PROXY, PROXY),), "proxy_gids": ((PROXY, PROXY),)},
        {"proxy_uids": ((1000, 1400),), "proxy_gids": ()},
        {"proxy_uids": (), "proxy_gids": ((7, 7), (PROXY, PROXY))},
    )
)
redirections = st.builds(
    lambda owner, **fields: Redirection(**owner, **fields),
    owner=owners,
    inbound=st.sampled_from(("redirect", "redirect", "tproxy", "tproxy", "off")),
    outbound=st.sampled_from(("redirect", "redirect", "redirect", "redirect", "off")),
    tunnel_port=st.sampled_from((0, 15008, 80)),
    include_inbound_ports=mostly(ALL_PORTS, ports),
    exclude_inbound_ports=mostly((), ports),
    exclude_inbound_cidrs=mostly((), prefixes),
    include_outbound_ports=mostly((), ports),
    exclude_outbound_ports=mostly((), ports),
    exclude_outbound_ports_for_uids=mostly((), st.lists(exclusions, max_size=2).map(tuple)),
    include_outbound_cidrs=mostly(ANYWHERE, prefixes),
    exclude_outbound_cidrs=mostly((), prefixes),
    exclude_interfaces=mostly((), interfaces),
    virtual_interfaces=st.sampled_from(((), (), ("net1",), ("ne+",))),
    dns=st.sampled_from(
        ((), ANYWHERE, disjoint(["10.96.0.10/32", "2001:db8:96::a/128"]), disjoint(["8.8.8.8/32"]))
    ),
    dns_protocols=st.sampled_from((("udp", "tcp"), ("udp", "tcp"), ("udp",), ("tcp",))),
    drop_invalid=st.booleans(),
    udp443=st.sampled_from(("pass", "reject")),
    self_calls_to_inbound=st.booleans(),
    include_loopback=st.booleans(),
    loopback_cidrs=st.sampled_from(
        (LOOPBACK, LOOPBACK, (), disjoint(["127.0.0.0/8", "::1/128", "10.1.0.0/16"]))
    ),
    include_outbound_gids=mostly(ALL_IDS, ids),
    exclude_outbound_gids=mostly((), ids),
    passthrough_sources=st.sampled_from(
        (PASSTHROUGH, PASSTHROUGH, (), disjoint(["10.50.0.3/32", "fd00:50::3/128"]))
    ),
)


@st.composite
def whos(draw: st.DrawFn) -> Who:
    """Draw a dial that the lab's topology can carry."""
    place = draw(st.sampled_from(("pod", "pod", "pod", "pod", "outside", "guest")))
    protocol = draw(
        st.sampled_from(("tcp", "tcp", "tcp", "udp") if place != "outside" else ("tcp",) * 7 + ("udp",))
    )
    # UDP means something on two ports only.
    number = draw(st.sampled_from((80, 80, *PORTS) if protocol == "tcp" else (53, 53, 443, 443, 80)))
    if place == "outside":
        source = draw(st.sampled_from(("", "service", "service2", "public")))
        return Who(place, draw(st.sampled_from(OWN_NAMES)), number, protocol, source=source)
    far = ("service", "service2", "public", "resolver", "resolver2")
    if place == "guest":
        return Who(place, draw(st.sampled_from((*far, "own", "own-net1"))), number, protocol)
    to = draw(st.sampled_from((*far, *far, "guest", *OWN_NAMES, *OWN_NAMES, "loopback", "loopback2")))
    sources = ("", "", "own", "own2", *(("passthrough",) if to in OWN_NAMES else ()))
    uid, gid = draw(st.sampled_from(OWNERS)), draw(st.sampled_from(OWNERS))
    return Who(place, to, number, protocol, uid, gid, draw(st.sampled_from(sources)))


# Programming costs what a hundred dials cost.
dials = st.lists(st.tuples(whos(), st.sampled_from((4, 6))), min_size=8, max_size=12)


def can_be_dialled(who: Who, family: int, redirection: Redirection, families: tuple[int, ...]) -> bool:
    """Say whether the source exists: ::6 is an address only where a backend made it one."""
    made = 6 in families and redirection.passthrough_sources == PASSTHROUGH
    return not (who.source == "passthrough" and family == 6 and not made)


def expected(who: Who, said: Outcome) -> tuple[str, str, int]:
    """Return (result, place, listener's port) of a dial the oracle has judged."""
    if said.action == REJECT:
        return "refused", "", 0
    if said.action == PASS:
        here = who.to in OWN_NAMES or who.to.startswith("loopback")
        return "connected", "pod" if here else "guest" if who.to == "guest" else "outside", who.port
    return "connected", "pod", said.port


def observed(seen: Seen) -> tuple[str, str, int]:
    """Return the same of a dial that was made."""
    return seen.result, seen.where, seen.port


@pytest.fixture(scope="module")
def fuzzed(shared_pod: Pod) -> Iterator[Pod]:
    """Give the pod that all examples share, where every backend can be had."""
    for backend in BACKENDS:
        need(backend)
    yield shared_pod
    shared_pod.clear()


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@given(redirection=redirections, families=st.sampled_from(((4, 6), (4, 6), (4,), (6,))), dials=dials)
def test_backends_and_oracle_agree(
    fuzzed: Pod, redirection: Redirection, families: tuple[int, ...], dials: list[tuple[Who, int]]
) -> None:
    """Some combination of settings means one thing to a backend and another to the other, or to the contract."""
    dials = [(who, family) for who, family in dials if can_be_dialled(who, family, redirection, families)]
    said = [outcome(redirection, families, probe(who, family)) for who, family in dials]
    for row in {one.row for one in said}:
        event(row)
    for backend in BACKENDS:
        if backend == "ebpf" and redirection.virtual_interfaces:
            continue  # it refuses: test_contract
        fuzzed.program(backend, redirection, families)
        for (who, family), one in zip(dials, said, strict=True):
            if backend == "ebpf" and who.place == "guest" and who.to not in OWN_NAMES:
                continue  # the documented difference: what a pod forwards meets no socket of its own
            seen = fuzzed.endpoints[who.place].dial_all([dial(who, family)])[0]
            note(f"{backend}: {who} over IPv{family}: {one.row} {one.why} -> {seen}")
            assert (backend, *observed(seen)) == (backend, *expected(who, one))
