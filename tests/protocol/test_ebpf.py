"""The plugin with the eBPF backend, where that differs from rules in a netns: things outlive the netns."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.ground import Cgroup, bpffs
from tests.lab.namespace import Namespace
from tests.lab.need import need
from tests.protocol.caller import OWNED, POD, Caller

PREV = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]}


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """Make a cgroup."""
    need("ebpf")
    made = Cgroup()
    yield made
    made.close()


@pytest.fixture
def netconf(cgroup: Cgroup) -> dict[str, Any]:
    """Return what makes the plugin choose ebpf, in places of the test's own."""
    return {
        "backends": ["ebpf", "nftables"],
        "redirection": OWNED,
        "bpffs": bpffs(),
        "cgroup": cgroup.path,
        "prevResult": PREV,
    }


def pins() -> list[str]:
    """Return the names of what is pinned for cgroups and sandboxes."""
    top = f"{bpffs()}/mesh-redirect/1"
    return [
        name
        for kind in ("cgroups", "sandboxes")
        if os.path.isdir(f"{top}/{kind}")
        for name in os.listdir(f"{top}/{kind}")
    ]


def test_add_check_and_delete(call: Caller, netconf: dict[str, Any]) -> None:
    """The plugin cannot use the backend that it was told to prefer, and says another reason than the true one."""
    call("ADD", env={"CNI_ARGS": POD}, **netconf).success()
    assert len(pins()) == 2
    call("CHECK", **netconf).success()
    call("ADD", env={"CNI_ARGS": POD}, **netconf).success()
    call("CHECK", **netconf).success()
    call("DEL", **netconf).success()
    assert pins() == []
    call("DEL", **netconf).success()


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"], ids=["no path", "a path that is gone"])
def test_delete_without_a_netns_leaves_nothing(call: Caller, netconf: dict[str, Any], netns: str) -> None:
    """Links and policy of a sandbox stay for good when its netns goes before DEL, as containerd's does."""
    call("ADD", env={"CNI_ARGS": POD}, **netconf).success()
    assert len(pins()) == 2
    call("DEL", env={"CNI_NETNS": netns}, **{**netconf, "cgroup": "/nowhere", "prevResult": None}).success()
    assert pins() == []
    assert call.records() == []


def test_gc_of_a_netns_that_is_gone(call: Caller, netconf: dict[str, Any], sandbox: Namespace) -> None:
    """GC removes the record and leaves what it spoke of."""
    call("ADD", env={"CNI_ARGS": POD}, **netconf).success()
    sandbox.close()
    call("GC", **netconf, **{"cni.dev/valid-attachments": []}).success()
    assert pins() == []
    assert call.records() == []


def test_the_next_backend_takes_over_and_back(
    call: Caller, netconf: dict[str, Any], sandbox: Namespace
) -> None:
    """Both redirect at once after a change of preference, or a guest's pod is refused for the first one's sake."""
    guests = {**netconf, "redirection": {**OWNED, "virtualInterfaces": ["tap0"]}}
    for wanted, chosen in ((netconf, "ebpf"), (guests, "nftables"), (netconf, "ebpf")):
        call("ADD", env={"CNI_ARGS": POD}, **wanted).success()
        rules = "mesh_redirect" in sandbox.run("nft", "list", "ruleset")
        assert (rules, len(pins())) == ((False, 2) if chosen == "ebpf" else (True, 0))
    call("DEL", **netconf).success()


def test_status_leaves_nothing(call: Caller, netconf: dict[str, Any]) -> None:
    """Every STATUS leaves the policy of a scratch netns."""
    for _ in range(2):
        call("STATUS", **netconf).success()
        assert pins() == []
