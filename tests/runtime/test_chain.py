"""The plugin as a runtime drives it: libcni's chain, the reference plugins around it, every verb."""

import json
import os
from typing import Any

import pytest

from tests.runtime.node import ANNOTATIONS, Netns, Node

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
BACKENDS = ("nftables", "iptables")
CHECKED = ("0.4.0", "1.0.0", "1.1.0")  # CNI spec: CHECK came with 0.4.0
COLLECTED = ("1.1.0",)  # and GC and STATUS with 1.1.0
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
# "tuning" with nothing to tune: a plugin after ours that only passes the result on.
TUNING: dict[str, Any] = {"type": "tuning", "sysctl": {}}
MESHED = {"sidecar.istio.io/status": '{"containers": ["istio-proxy"]}'}

RECORDER = """
import json, os, sys
given = json.load(sys.stdin)
with open(given["recordTo"], "a") as file:
    json.dump({"command": os.environ["CNI_COMMAND"], "stdin": given}, file)
    file.write("\\n")
if os.environ["CNI_COMMAND"] == "ADD":
    json.dump(given["prevResult"], sys.stdout)
elif os.environ["CNI_COMMAND"] == "VERSION":
    json.dump({"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}, sys.stdout)
"""
REFUSER = """
import json, os, sys
if os.environ["CNI_COMMAND"] == "ADD":
    json.dump({"cniVersion": "1.1.0", "code": 199, "msg": "the plugin after ours fails"}, sys.stdout)
    sys.exit(1)
if os.environ["CNI_COMMAND"] == "VERSION":
    json.dump({"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}, sys.stdout)
"""


def runs(node: Node, verb: str, network: str, pod: Netns, **how: Any) -> str:
    """Run a verb that has to succeed; return what it printed."""
    done = node.cnitool(verb, network, pod, **how)
    assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
    return done.stdout


def fails(node: Node, verb: str, network: str, pod: Netns, **how: Any) -> str:
    """Run a verb that has to fail; return what it said."""
    done = node.cnitool(verb, network, pod, **how)
    assert done.returncode != 0, f"{verb} should have failed: {done.stdout}"
    return done.stdout + done.stderr


def kernel(pod: Netns) -> dict[str, str]:
    """Return all that a redirection could change in the sandbox, as other people's tools print it."""
    commands = (
        "nft -s list ruleset",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip addr show dev lo",
    )
    told = {command: pod.run(*command.split()) for command in commands}
    # Comments carry the time; reading a table with the legacy tools creates it, empty.
    return {
        command: "\n".join(
            line for line in text.splitlines() if not line.startswith(("#", "*", ":", "COMMIT"))
        )
        for command, text in told.items()
    }


def ours_alone(node: Node, **netconf: Any) -> dict[str, Any]:
    """Return our netconf with everything in it: no annotations, no mesh."""
    return node.ours(redirection={"proxyUids": [1337], "proxyGids": [1337]}, **netconf)


def redirected(pod: Netns, family: int) -> bool:
    """Say whether a call out of the pod is taken: with no proxy it is refused, where it else would be answered."""
    gateway = {4: "10.88.0.1", 6: "fd00:88::1"}[family]
    return {"refused": True, "answered": False}[pod.call(gateway, 8080)["outcome"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("after", [[], [TUNING]], ids=["last", "tuning-after"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_verb_at_every_version(
    node: Node, version: str, after: list[dict[str, Any]], backend: str
) -> None:
    """Red: a runtime of that version cannot run a chain that holds the plugin."""
    plugins = [node.first("bridge"), PORTMAP, ours_alone(node, backends=[backend]), *after]
    network = node.network("n", *plugins, version=version)
    pod = node.pod("pod")
    before = kernel(pod)
    if version in COLLECTED:
        runs(node, "status", network, pod)
    result = json.loads(runs(node, "add", network, pod))
    assert result["cniVersion"] == version
    assert [ip["address"].split("/")[0] for ip in result["ips"]] == [pod.addresses()[4], pod.addresses()[6]]
    node.netns.serve("node", 8080)
    assert redirected(pod, 4)
    assert redirected(pod, 6)
    if version in CHECKED:
        runs(node, "check", network, pod)
    runs(node, "del", network, pod)
    runs(node, "del", network, pod)
    assert kernel(pod) == before
    assert node.attachments() == []


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_what_comes_after_us_is_given_what_came_before(node: Node, kind: str) -> None:
    """Red: the plugin changes, drops or invents something in the result it hands on."""
    node.plugin("recorder", RECORDER)
    notes = os.path.join(node.directory, "notes")
    recorder = {"type": "recorder", "recordTo": notes}
    network = node.network("n", node.first(kind), PORTMAP, recorder, ours_alone(node), recorder)
    pod = node.pod("pod")
    result = json.loads(runs(node, "add", network, pod))
    runs(node, "check", network, pod)
    runs(node, "del", network, pod)
    with open(notes, encoding="utf-8") as file:
        given = [json.loads(line) for line in file]
    added = [call["stdin"]["prevResult"] for call in given if call["command"] == "ADD"]
    assert added[0] == added[1] == result
    # libcni goes backwards on DEL, and hands every plugin the final result on CHECK and DEL.
    commands = ["ADD", "ADD", "CHECK", "CHECK", "DEL", "DEL"]
    assert [call["command"] for call in given if call["command"] != "VERSION"] == commands


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failing_add_leaves_the_netns_as_it_was(node: Node, backend: str) -> None:
    """Red: a pod that is refused keeps half of a redirection, and somebody else's rules are lost."""
    pod = node.pod("pod")
    pod.run(
        "nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c tcp dport 1 accept"
    )
    pod.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "1", "-j", "ACCEPT")
    before = kernel(pod)
    network = node.network("n", node.ours(mesh="istio", backends=[backend]))
    wrong = {**MESHED, "traffic.sidecar.istio.io/excludeOutboundPorts": "80; drop"}
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart"
    told = fails(node, "add", network, pod, args=args, capabilities={ANNOTATIONS: wrong})
    assert "traffic.sidecar.istio.io/excludeOutboundPorts" in told
    assert "80; drop" in told
    assert kernel(pod) == before
    assert node.attachments() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_plugin_fails_and_the_runtime_takes_us_back(node: Node, backend: str) -> None:
    """Red: after a failed chain the runtime's DEL leaves our rules or our record."""
    node.plugin("refuser", REFUSER)
    network = node.network("n", node.first("ptp"), ours_alone(node, backends=[backend]), {"type": "refuser"})
    pod = node.pod("pod")
    before = kernel(pod)
    assert "the plugin after ours fails" in fails(node, "add", network, pod)
    assert len(node.attachments()) == 1
    runs(node, "del", network, pod)
    assert kernel(pod) == before
    assert node.attachments() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_add_again_replaces(node: Node, backend: str) -> None:
    """Red: a runtime that repeats ADD doubles the rules, or is refused."""
    network = node.network("n", ours_alone(node, backends=[backend]))
    pod = node.pod("pod")
    runs(node, "add", network, pod)
    once = kernel(pod)
    runs(node, "add", network, pod)
    assert kernel(pod) == once
    runs(node, "check", network, pod)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gc_ends_what_the_runtime_no_longer_knows(node: Node, backend: str) -> None:
    """Red: records of sandboxes that are gone stay on the node for ever."""
    network = node.network("n", node.first("bridge"), ours_alone(node, backends=[backend]))
    pods = [node.pod("one"), node.pod("two")]
    for pod in pods:
        runs(node, "add", network, pod)
    assert len(node.attachments()) == 2
    # cnitool names no valid attachment: all of them are to go.
    runs(node, "gc", network, pods[0])
    assert node.attachments() == []


def test_del_after_the_netns_is_gone(node: Node) -> None:
    """Red: a pod whose sandbox died first can never be deleted."""
    network = node.network("n", node.first("bridge"), ours_alone(node))
    pod = node.pod("pod")
    runs(node, "add", network, pod)
    node.forget(pod)
    runs(node, "del", network, pod)
    assert node.attachments() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_chooses_the_families(node: Node, backend: str) -> None:
    """Red: a family the pod has no address in is programmed, or one that it has is not."""
    network = node.network("n", node.first("bridge", families=(4,)), ours_alone(node, backends=[backend]))
    pod = node.pod("pod")
    runs(node, "add", network, pod)
    node.netns.serve("node", 8080)
    assert redirected(pod, 4)
    pod.serve("app", 8080)
    assert pod.call("::1", 8080)["outcome"] == "answered"
    saved = kernel(pod)
    assert "REDIRECT" not in saved["ip6tables-legacy-save"]


def test_a_pod_without_a_sidecar_passes(node: Node) -> None:
    """Red: pods outside the mesh are redirected, or are refused."""
    network = node.network("n", node.first("bridge"), node.ours(mesh="istio"))
    pod = node.pod("pod")
    before = kernel(pod)
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=batch"
    runs(node, "add", network, pod, args=args, capabilities={ANNOTATIONS: {"some": "annotation"}})
    rules = [command for command in before if "save" in command or "nft" in command]
    assert {command: kernel(pod)[command] for command in rules} == {
        command: before[command] for command in rules
    }
    runs(node, "check", network, pod, args=args)
    runs(node, "del", network, pod, args=args)
