"""Connections older than a redirection, or than its repetition, live on untouched; later ones are redirected."""

import pytest

from cni_plugin.model.redirection import ANYWHERE, Redirection
from tests.contract.run import LISTENERS
from tests.contract.table import BASE
from tests.lab.topology import Pod, address

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
CHANGES = pytest.mark.parametrize(
    "changes",
    [{}, {"inbound": "tproxy"}, {"drop_invalid": True}, {"inbound": "tproxy", "drop_invalid": True}],
    ids=["redirect", "tproxy", "redirect-drop-invalid", "tproxy-drop-invalid"],
)


def everything(changes: dict[str, object]) -> Redirection:
    """Return a redirection that captures all it can."""
    return BASE.replace(dns=ANYWHERE, include_loopback=True, **changes)


@FAMILIES
@CHANGES
def test_older_connections_live_on(pod: Pod, backend: str, family: int, changes: dict[str, object]) -> None:
    """A pod's netns in which conntrack was never active: its open connections break when the redirection comes."""
    own, service = address("own", family), address("service", family)
    older = [
        (pod, pod.hold(service, 80, uid=1000, gid=1000)),
        (pod, pod.hold(service, 80, uid=1337, gid=1337)),
        (pod, pod.hold(own, 80, uid=1337, gid=1337)),
        (pod, pod.hold(service, 53, uid=1000, gid=1000)),
        (pod.outside, pod.outside.hold(own, 80)),
        (pod.guest, pod.guest.hold(address("own-net1", family), 80)),
    ]
    assert [seen.port for _, seen in older] == [80, 80, 80, 53, 80, 80]
    pod.program(backend, everything(changes))
    assert [endpoint.echo(seen) for endpoint, seen in older] == ["alive"] * len(older)
    assert pod.dial(service, 80, uid=1000).port == LISTENERS["outbound"]
    assert pod.outside.dial(own, 80).port == LISTENERS["inbound"]
    assert [endpoint.echo(seen) for endpoint, seen in older] == ["alive"] * len(older)
    pod.clear(backend)
    assert [endpoint.echo(seen) for endpoint, seen in older] == ["alive"] * len(older)


@FAMILIES
@CHANGES
def test_redirected_connections_survive_a_second_add(
    pod: Pod, backend: str, family: int, changes: dict[str, object]
) -> None:
    """The runtime repeats an ADD, or a new version replaces the rules, and every open connection breaks."""
    own, service = address("own", family), address("service", family)
    redirection = everything(changes)
    pod.program(backend, redirection)
    held = [
        (pod, pod.hold(service, 80, uid=1000, gid=1000)),
        (pod, pod.hold(service, 80, uid=1337, gid=1337)),
        (pod, pod.hold(own, 80, uid=1337, gid=1337)),
        (pod, pod.hold(own, 80, uid=1000, gid=1000)),
        (pod, pod.hold(service, 53, uid=1000, gid=1000)),
        (pod, pod.hold(service, 53, uid=1000, gid=1000, protocol="udp")),
        (pod.outside, pod.outside.hold(own, 80)),
    ]
    outbound, inbound, dns = (LISTENERS[name] for name in ("outbound", "inbound", "dns"))
    assert [seen.port for _, seen in held] == [outbound, 80, inbound, outbound, dns, dns, inbound]
    for repeated in (redirection, redirection, redirection.replace(exclude_outbound_ports=((9090, 9090),))):
        pod.add(backend, repeated)
        assert [endpoint.echo(seen) for endpoint, seen in held] == ["alive"] * len(held)
    assert pod.dial(service, 80, uid=1000).port == outbound
    assert pod.outside.dial(own, 80).port == inbound
