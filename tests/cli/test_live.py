"""`explain --live` of attachments that the real plugin made, after real traffic: the same rows with every backend."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from install import launcher
from tests.lab.ground import bpffs
from tests.lab.need import need
from tests.lab.topology import PROXY, Pod, address
from tests.protocol.caller import POD, Caller

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REDIRECTION = {
    "proxyUids": [PROXY],
    "proxyGids": [PROXY],
    "excludeOutboundCidrs": ["10.2.0.0/16", "2001:db8:2::/48"],
    "excludeOutboundPorts": ["8080-8085"],
    "excludeOutboundPortsForUids": [{"uids": [1000], "ports": [9090], "protocol": "tcp"}],
    "excludeInboundPorts": [8080],
    "excludeInterfaces": ["net1"],
    "dns": ["10.96.0.10"],
    "udp443": "reject",
}
PREV = {"cniVersion": "1.1.0", "ips": [{"address": "10.50.0.2/24"}, {"address": "fd00:50::2/64"}]}
HITS = {"O2": 2, "O5": 1, "O6": 1, "O8": 1, "O10": 3, "udp443": 1, "I3": 1, "I4": 2}
BACKENDS = ("nftables", "iptables", "ebpf")

Explain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    """Give a pod that nothing has programmed."""
    made = Pod()
    yield made
    made.close()


@pytest.fixture(params=BACKENDS)
def call(request: pytest.FixtureRequest, pod: Pod, tmp_path: Any) -> Iterator[Caller]:
    """Give the plugin, which has redirected the pod with one of the backends."""
    need(request.param)
    caller = Caller(launcher.write(str(tmp_path / "bin")), pod.path, str(tmp_path / "state"))
    made = {
        "backends": [request.param],
        "redirection": REDIRECTION,
        "bpffs": bpffs(),
        "cgroup": pod.cgroup.path,
        "prevResult": PREV,
    }
    caller.netconf = lambda **more: Caller.netconf(caller, **{**made, **more})  # type: ignore[method-assign]
    caller("ADD", env={"CNI_ARGS": POD}).success()
    pod.namespace.ask("forget_flows")
    yield caller
    caller("DEL").success()


def traffic(pod: Pod) -> None:
    """Dial what `HITS` counts."""
    app = {"uid": 1000, "gid": 1000}
    for _ in range(3):
        pod.dial(address("service", 4), 80, **app)
    pod.dial(address("service", 4), 8085, **app)
    pod.dial(address("service", 4), 9090, **app)
    pod.dial(address("service2", 6), 80, **app)
    pod.dial(address("service", 4), 80, uid=PROXY, gid=PROXY)
    pod.dial(address("resolver", 4), 53, protocol="udp", **app)
    pod.dial(address("service", 4), 443, protocol="udp", **app)
    pod.outside.dial(address("own", 4), 80)
    pod.outside.dial(address("own", 6), 80)
    pod.outside.dial(address("own", 4), 8080)


def live(command: Explain, call: Caller, *words: str) -> subprocess.CompletedProcess[str]:
    """Explain the caller's attachment."""
    where = ("--state-dir", call.state_dir, "--bpffs", bpffs())
    return command("explain", "--attachment", "c1", *where, "--live", *words)


def told(command: Explain, call: Caller) -> dict[str, Any]:
    """Return what --live --json says."""
    ran = live(command, call, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)["live"]


def test_the_rows_that_decided_are_shown(command: Explain, call: Caller, pod: Pod) -> None:
    """One backend's pod looks different from another's to whoever asks what became of its traffic."""
    assert told(command, call)["hits"] == []
    assert "none since ADD" in live(command, call).stdout
    traffic(pod)
    assert {hit["row"]: hit["hits"] for hit in told(command, call)["hits"]} == HITS
    text = live(command, call).stdout
    for row, count in HITS.items():
        assert any(line.split()[:1] == [row] and line.split()[-1] == str(count) for line in text.splitlines())


@pytest.mark.parametrize("call", ["ebpf"], indirect=True)
def test_policy_and_links_of_ebpf(command: Explain, call: Caller, pod: Pod) -> None:
    """People are shown what was asked for instead of what the programs are told, or links that are not there."""
    found = told(command, call)
    policy = found["policy"]
    for field, value in REDIRECTION.items():
        assert policy[field] == (["10.96.0.10/32"] if field == "dns" else value), field
    assert (policy["inbound"], policy["outboundPort"], policy["families"]) == ("redirect", 15001, [4, 6])
    assert (policy["includeOutboundCidrs"], policy["includeOutboundGids"]) == ("*", "*")
    assert {"127.0.0.0/8", "10.50.0.2/32", "::1/128"} <= set(policy["staysOnLoopback"])
    listed = subprocess.run(["bpftool", "-j", "link", "show"], check=True, capture_output=True).stdout
    known = {link["id"]: link["prog_id"] for link in json.loads(listed)}
    assert len(found["links"]) == 11
    for link in found["links"]:
        assert known[link["linkId"]] == link["programId"]
    assert f"cgroup {pod.cgroup.path}" in live(command, call).stdout
    assert live(command, call).stdout.count("sk_lookup") == 1


def test_nothing_is_live_of_another_netns(command: Explain, call: Caller) -> None:
    """The counters of a stranger are shown: its path is the same, after a restart."""
    path = f"{call.state_dir}/attachments/c1:eth0.json"
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    for change, message in (
        ({"netnsCookie": 1}, "not the network namespace that ADD redirected"),
        ({"netns": "/run/netns/gone"}, "/run/netns/gone cannot be entered: No such file"),
    ):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({**record, **change}, file)
        ran = live(command, call)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert message in ran.stderr
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)


@pytest.mark.parametrize("call", ["ebpf"], indirect=True)
def test_pins_elsewhere_are_said_to_be(command: Explain, call: Caller) -> None:
    """A pod looks as if nothing had ever hit it, because its maps are pinned somewhere else."""
    ran = live(command, call, "--bpffs", call.state_dir)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"no policy of this sandbox is pinned in {call.state_dir}" in ran.stderr


def test_who_may_not_look_is_told(command: Explain, tmp_path: Any) -> None:
    """A user is shown a traceback, or a pod's traffic; or --live does nothing for a netconf, without a word."""
    script = (
        "import os, sys; from cni_plugin.cli.main import main; os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    words = ("explain", "--attachment", "c1", "--live")
    ran = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2, ran
    assert "--live: only root" in ran.stderr
    path = tmp_path / "netconf"
    path.write_text("{}")
    assert "needs --attachment" in command("explain", "--netconf", str(path), "--live").stderr
