"""The plugin under containerd: annotations by the capability, a sidecar container, StopPodSandbox and RemovePodSandbox."""

import json
import os
from collections.abc import Iterator

import grpc
import pytest

from tests.lab.need import need
from tests.runtime.containerd import Containerd, call
from tests.runtime.envoy import Envoy
from tests.runtime.node import Node

GATEWAY = ("10.88.0.1", "fd00:88::1")
MESHED = {
    "sidecar.istio.io/status": '{"containers": ["istio-proxy"]}',
    "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
}


@pytest.fixture
def containerd(node: Node) -> Iterator[Containerd]:
    """Start containerd on a node whose chain is there, since it only notices a new one after a while."""
    need("containers")
    # containerd 1.6 speaks CNI 1.0.0.
    node.network("n", node.first("bridge"), node.ours(mesh="istio"), version="1.0.0")
    made = Containerd(node)
    yield made
    made.close()


def log(node: Node) -> list[tuple[str, str, str, int]]:
    """Return the calls that the plugin's log tells of: level, verb, pod, error code or 0."""
    with open(os.path.join(node.state, "plugin.log"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [(line["level"], line["verb"], line.get("pod", ""), line.get("code", 0)) for line in lines]


def test_a_meshed_pod_with_a_sidecar_container(
    node: Node, containerd: Containerd, envoy_program: str
) -> None:
    """Red: under containerd the sidecar does not see what goes in and out, or the pod cannot be removed."""
    pod = containerd.pod("cart", MESHED)
    app = pod.serve("cart", 8080)
    envoy = Envoy(pod, envoy_program, node.directory)
    node.netns.serve("node", 8080)
    for address, gateway in zip(pod.addresses, GATEWAY, strict=True):
        assert call(app, gateway, 8080)["body"]["server"] == "node"
        assert [(line["listener"], line["client"]) for line in envoy.seen()] == [("outbound", address)]
        answer = node.netns.call(address, 8080)
        assert (answer["body"]["server"], answer["headers"]["x-seen-by"]) == ("cart", "inbound")
        assert [(line["listener"], line["client"]) for line in envoy.seen()] == [("inbound", gateway)]
    envoy.stop()
    assert [call(app, gateway, 8080)["outcome"] for gateway in GATEWAY] == ["refused", "refused"]
    pod.close()
    # StopPodSandbox's DEL, and RemovePodSandbox's with no netns and no prevResult.
    assert log(node) == [("info", verb, "shop/cart", 0) for verb in ("ADD", "DEL", "DEL")]
    assert node.attachments() == []


def test_a_bad_annotation_is_what_the_user_reads(node: Node, containerd: Containerd) -> None:
    """Red: the pod's event does not say which annotation is wrong, or something is left of the pod."""
    wrong = {**MESHED, "traffic.sidecar.istio.io/excludeOutboundPorts": "80,https"}
    with pytest.raises(grpc.RpcError) as refused:
        containerd.pod("cart", wrong)
    told = refused.value.details()
    assert "traffic.sidecar.istio.io/excludeOutboundPorts" in told
    assert "https" in told
    assert log(node) == [("error", "ADD", "shop/cart", 102), ("info", "DEL", "shop/cart", 0)]
    assert node.attachments() == []


def test_a_pod_without_annotations_passes(node: Node, containerd: Containerd) -> None:
    """Red: pods outside the mesh are redirected, or never start."""
    pod = containerd.pod("batch", {})
    app = pod.serve("batch", 8080)
    node.netns.serve("node", 8080)
    assert [call(app, gateway, 8080)["outcome"] for gateway in GATEWAY] == ["answered", "answered"]
    assert pod.run("nft", "list", "ruleset") == ""
    pod.close()
    assert node.attachments() == []
