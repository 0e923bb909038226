"""Clients and proxies whose sockets are not the plain blocking kind, with both backends in both families."""

from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin.model.redirection import ANYWHERE
from tests.contract.run import LISTENERS
from tests.contract.table import BASE
from tests.lab.need import need
from tests.lab.topology import DEAD, OWN, PROXY, Pod, address, packed

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
EVERYTHING = BASE.replace(dns=ANYWHERE)
APP = {"uid": 1000, "gid": 1000}
OUTBOUND, INBOUND, DNS = LISTENERS["outbound"], LISTENERS["inbound"], LISTENERS["dns"]


@pytest.fixture
def captured(shared_pod: Pod, backend: str) -> Iterator[Pod]:
    """Give a pod whose TCP and DNS are captured."""
    shared_pod.program(backend, EVERYTHING)
    return shared_pod


@FAMILIES
@pytest.mark.parametrize(
    "kind",
    [
        {"nonblocking": True},
        {"source": "own2"},
        {"source": "own2", "source_port": 40123},
        {"source_port": 40124},
    ],
    ids=["non-blocking", "source-bound", "source-and-port-bound", "port-bound"],
)
def test_client(captured: Pod, family: int, kind: dict[str, Any]) -> None:
    """A client of this kind bypasses the proxy, hangs, or learns a wrong address."""
    if "source" in kind:
        kind = {**kind, "source": address(kind["source"], family)}
    service = address("service", family)
    seen = captured.dial(service, 80, **APP, **kind)
    assert (seen.result, seen.where, seen.port) == ("connected", "pod", OUTBOUND)
    assert seen.original == seen.peername == (service, 80)
    assert seen.peer == seen.sockname
    assert seen.sockname is not None
    assert packed(seen.sockname[0]) in OWN
    if "source" in kind:
        assert seen.sockname[0] == kind["source"]
    if "source_port" in kind:
        assert seen.sockname[1] == kind["source_port"]


@FAMILIES
@pytest.mark.parametrize(
    "kind", [{"nonblocking": True}, {"source": "own2"}], ids=["non-blocking", "source-bound"]
)
def test_client_of_a_proxy_that_is_down(
    shared_pod: Pod, backend: str, family: int, kind: dict[str, Any]
) -> None:
    """A client of this kind waits for a time-out where others are refused at once."""
    if "source" in kind:
        kind = {**kind, "source": address(kind["source"], family)}
    shared_pod.program(backend, EVERYTHING.replace(outbound_port=DEAD))
    assert shared_pod.dial(address("service", family), 80, **APP, **kind).result == "refused"


def test_v4_mapped_client(captured: Pod) -> None:
    """A dual-stack runtime (Java, Go's "tcp" on ::ffff:) dials IPv4 by an IPv6 socket and bypasses the proxy."""
    seen = captured.dial("10.1.2.3", 80, mapped=True, **APP)
    assert (seen.where, seen.port, seen.original) == ("pod", OUTBOUND, ("10.1.2.3", 80))
    assert seen.peername == ("::ffff:10.1.2.3", 80)
    assert seen.sockname is not None
    assert seen.sockname[0] == "::ffff:10.50.0.2"
    datagram = captured.dial("10.96.0.10", 53, protocol="udp", mapped=True, **APP)
    assert (datagram.where, datagram.port) == ("pod", DNS)
    assert captured.dial("10.1.2.3", 80, mapped=True, uid=PROXY).where == "outside"


@FAMILIES
@pytest.mark.parametrize("direction", ["out", "in", "in by tproxy"])
def test_fast_open(shared_pod: Pod, backend: str, family: int, direction: str) -> None:
    """Data in the SYN is lost, or the connection with it bypasses the proxy."""
    shared_pod.program(backend, EVERYTHING.replace(inbound="tproxy" if "tproxy" in direction else "redirect"))
    client = shared_pod if direction == "out" else shared_pod.outside
    target = address("service" if direction == "out" else "own", family)
    seen = client.dial(target, 80, fastopen=True)
    assert (seen.where, seen.port) == ("pod", OUTBOUND if direction == "out" else INBOUND)
    assert (target, 80) in (seen.original, seen.at)
    assert (seen.syn_data, seen.echo) == (True, "early")


@FAMILIES
def test_fast_open_to_a_proxy_that_is_down(shared_pod: Pod, backend: str, family: int) -> None:
    """A client with data in its SYN waits for a time-out where others are refused at once."""
    shared_pod.program(backend, EVERYTHING.replace(outbound_port=DEAD))
    assert shared_pod.dial(address("service", family), 80, fastopen=True, **APP).result == "refused"


@FAMILIES
@pytest.mark.parametrize("direction", ["out", "in"])
def test_mptcp_client(captured: Pod, backend: str, family: int, direction: str) -> None:
    """Multipath TCP bypasses the proxy or fails to fall back to TCP with it."""
    need("mptcp")
    client = captured if direction == "out" else captured.outside
    target = address("service" if direction == "out" else "own", family)
    seen = client.dial(target, 80, mptcp=True)
    assert (seen.where, seen.port) == ("pod", OUTBOUND if direction == "out" else INBOUND)
    assert seen.original == (target, 80)
    if backend == "ebpf" and direction == "out":
        # The documented difference: what it dialled is known of the first subflow, not of the whole.
        assert seen.peername == (address("loopback", family), OUTBOUND)
    else:
        assert seen.peername == (target, 80)


@FAMILIES
@pytest.mark.parametrize("kind", [{}, {"unconnected": True}], ids=["connected", "unconnected"])
@pytest.mark.parametrize("target", ["resolver", "own", "loopback"])
def test_dns_client(captured: Pod, family: int, kind: dict[str, Any], target: str) -> None:
    """A resolver drops the answer because it does not come from the server it asked."""
    server = address(target, family)
    seen = captured.dial(server, 53, protocol="udp", **APP, **kind)
    assert (seen.where, seen.port) == ("pod", DNS)
    assert seen.peername == (server, 53)


@FAMILIES
@pytest.mark.parametrize("kind", [{}, {"unconnected": True}], ids=["connected", "unconnected"])
def test_dns_client_takes_over_the_port_of_the_proxys_query(
    captured: Pod, family: int, kind: dict[str, Any]
) -> None:
    """The proxy's upstream query left a conntrack entry, so an app that gets its port by chance is not captured."""
    server = address("resolver", family)
    bound = {"protocol": "udp", "source": address("own", family), "source_port": 40053}
    upstream = captured.dial(server, 53, uid=PROXY, gid=PROXY, **bound)
    assert upstream.where == "outside"
    assert captured.dial(server, 53, **bound, **APP, **kind).port == DNS
    again = captured.dial(server, 53, uid=PROXY, gid=PROXY, **bound)
    assert (again.where, again.peername) == ("outside", (server, 53))
    assert captured.dial(server, 53, **bound, **APP, **kind).port == DNS


@FAMILIES
def test_dns_address(shared_pod: Pod, backend: str, family: int) -> None:
    """The mesh's resolver is not the proxy on loopback, and queries still go there, or their answers are dropped."""
    resolver = tuple(packed(address("resolver2", version)) for version in (4, 6))
    shared_pod.program(backend, EVERYTHING.replace(dns_address=resolver, dns_port=9090))
    asked = address("resolver", family)
    for kind in ({"protocol": "udp"}, {"protocol": "udp", "unconnected": True}, {"protocol": "tcp"}):
        seen = shared_pod.dial(asked, 53, **APP, **kind)
        assert (seen.where, seen.at) == ("outside", (address("resolver2", family), 9090))
        assert seen.peername == (asked, 53)


def test_dns_address_of_one_family(shared_pod: Pod, backend: str) -> None:
    """The other family's queries, for which there is no resolver's address, bypass the proxy or are lost."""
    only = (packed(address("resolver2", 4)),)
    shared_pod.program(backend, EVERYTHING.replace(dns_address=only, dns_port=9090))
    for protocol in ("udp", "tcp"):
        by_ipv4 = shared_pod.dial(address("resolver", 4), 53, protocol=protocol, **APP)
        assert (by_ipv4.where, by_ipv4.at) == ("outside", (address("resolver2", 4), 9090))
        by_ipv6 = shared_pod.dial(address("resolver", 6), 53, protocol=protocol, **APP)
        assert (by_ipv6.where, by_ipv6.port) == ("pod", 9090)


@FAMILIES
@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_proxy_with_several_listeners_of_one_port(pod: Pod, backend: str, family: int, mode: str) -> None:
    """A proxy with a listener per worker thread (SO_REUSEPORT) gets all connections on one of them, or none."""
    pod.unlisten(OUTBOUND, INBOUND)
    for worker in "abcd":
        owner = {"uid": PROXY, "gid": PROXY, "reuseport": True, "protocols": ("tcp",), "tag": worker}
        pod.listen(OUTBOUND, **owner)
        pod.listen(INBOUND, transparent=True, **owner)
    pod.program(backend, EVERYTHING.replace(inbound=mode))
    service, own = address("service", family), address("own", family)
    out = [pod.dial(service, 80, **APP) for _ in range(64)]
    assert {(seen.port, seen.original) for seen in out} == {(OUTBOUND, (service, 80))}
    arriving = [pod.outside.dial(own, 80) for _ in range(64)]
    assert {seen.port for seen in arriving} == {INBOUND}
    # 64 connections all on one of four listeners by chance: 4 ** -63.
    assert len({seen.tag for seen in out}) > 1
    assert len({seen.tag for seen in arriving}) > 1


def test_proxy_with_one_dual_stack_listener(pod: Pod, backend: str) -> None:
    """A proxy that listens on [::] for both families cannot learn the original destination of IPv4."""
    pod.unlisten(OUTBOUND, INBOUND)
    for port in (OUTBOUND, INBOUND):
        pod.listen(port, families=(6,), dual=True, uid=PROXY, gid=PROXY, protocols=("tcp",))
    pod.program(backend, EVERYTHING)
    assert pod.dial("10.1.2.3", 80, **APP).original_v4 == ("10.1.2.3", 80)
    assert pod.outside.dial("10.50.0.2", 80).original_v4 == ("10.50.0.2", 80)
    assert pod.dial("2001:db8:1::3", 80, **APP).original == ("2001:db8:1::3", 80)


@FAMILIES
def test_client_bound_to_a_device_times_out(captured: Pod, family: int) -> None:
    """Not the documented difference any more: SO_BINDTODEVICE used to time out, neither redirected nor bypassing."""
    assert captured.dial(address("service", family), 80, device="eth0", timeout=1, **APP).result == "timeout"
    assert captured.dial(address("service", family), 80, device="eth0", uid=PROXY).where == "outside"


@FAMILIES
@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_packets_of_no_connection(shared_pod: Pod, backend: str, family: int, mode: str) -> None:
    """With dropInvalid such packets reach the pod untranslated, and its reset kills the proxy's connection."""
    ends = {"source": address("node", family), "to": address("own", family), "port": 80}
    # Without conntrack no packet is in an invalid state: this one simply has no socket.
    dropped = "reset" if backend == "ebpf" else "silence"
    for drop, expected in ((False, "reset"), (True, dropped)):
        shared_pod.program(backend, EVERYTHING.replace(inbound=mode, drop_invalid=drop))
        assert shared_pod.outside.namespace.ask("stray_fin", **ends) == expected
