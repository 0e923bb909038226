"""Real proxies behind a real chain: what they see is what the application dialled."""

from typing import Any

import pytest

from tests.runtime.envoy import Envoy
from tests.runtime.node import PROXY, Netns, Node
from tests.runtime.proxies import HAProxy, Squid

BACKENDS = ("nftables", "iptables", "ebpf")
FAMILIES = (4, 6)


class Pods:
    """A redirected pod `shop`, a plain pod `peer`, an application on 8080 in both."""

    def __init__(self, node: Node, backend: str, **redirection: Any) -> None:
        owners = {"proxyUids": [PROXY], "proxyGids": [PROXY]}
        plain = node.network("plain", node.first("bridge", 88))
        ours = node.ours(backends=[backend], redirection={**owners, **redirection})
        meshed = node.network("meshed", node.first("ptp", 89), ours)
        self.shop = self._attached(node, "shop", meshed)
        self.peer = self._attached(node, "peer", plain)

    @staticmethod
    def _attached(node: Node, name: str, network: str) -> Netns:
        pod = node.pod(name)
        done = node.cnitool("add", network, pod, args=pod.args)
        assert done.returncode == 0, done.stdout + done.stderr
        pod.serve(name, 8080)
        return pod


def endpoint(pod: Netns, family: int) -> str:
    """Return the pod's application as a log writes it."""
    address = pod.addresses()[family]
    return f"[{address}]:8080" if family == 6 else f"{address}:8080"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inbound", ["redirect", "tproxy"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_envoy(node: Node, envoy_program: str, backend: str, inbound: str, family: int) -> None:
    """Red: a sidecar does not see the pod's traffic, or not whence and where to it goes."""
    pods = Pods(node, backend, inbound=inbound)
    shop, peer = pods.shop.addresses()[family], pods.peer.addresses()[family]
    envoy = Envoy(pods.shop, envoy_program, node.directory, transparent=inbound == "tproxy")

    out = pods.shop.call(peer, 8080)
    assert out["outcome"] == "answered"
    assert (out["peer"][0], out["own"][0]) == (peer, shop)
    assert out["body"] == {"server": "peer", "client": shop}
    (seen,) = envoy.seen()
    assert (seen["listener"], seen["original"], seen["client"]) == (
        "outbound",
        endpoint(pods.peer, family),
        shop,
    )

    back = pods.peer.call(shop, 8080)
    assert back["outcome"] == "answered"
    assert back["headers"]["x-seen-by"] == "inbound"
    assert (back["peer"][0], back["own"][0]) == (shop, peer)
    assert back["body"] == {"server": "shop", "client": {4: "127.0.0.6", 6: "::6"}[family]}
    (seen,) = envoy.seen()
    assert (seen["listener"], seen["original"], seen["client"]) == (
        "inbound",
        endpoint(pods.shop, family),
        peer,
    )

    own = pods.shop.call(peer, 8080, uid=PROXY)
    assert own["outcome"] == "answered"
    assert envoy.silent()

    envoy.stop()
    assert pods.shop.call(peer, 8080)["outcome"] == "refused"
    assert pods.peer.call(shop, 8080)["outcome"] == "refused"


@pytest.mark.parametrize("backend", BACKENDS)
def test_haproxy(node: Node, backend: str) -> None:
    """Red: a proxy that asks SO_ORIGINAL_DST the classic way is told something else than what was dialled."""
    pods = Pods(node, backend, inbound="off")
    haproxy = HAProxy(pods.shop, node.directory)
    answer = pods.shop.call(pods.peer.addresses()[4], 8080)
    assert answer["body"] == {"server": "peer", "client": pods.shop.addresses()[4]}
    assert haproxy.seen() == f"{pods.shop.addresses()[4]} {endpoint(pods.peer, 4)}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_squid(node: Node, backend: str) -> None:
    """Red: an intercepting HTTP proxy cannot tell where a request was going."""
    pods = Pods(node, backend, inbound="off")
    squid = Squid(pods.shop, node.directory)
    answer = pods.shop.call(pods.peer.addresses()[4], 8080)
    assert answer["body"]["server"] == "peer"
    assert squid.seen() == f"{pods.shop.addresses()[4]} {endpoint(pods.peer, 4)} ORIGINAL_DST"
