"""`mesh-redirect explain` as a person runs it: the real executable, its output and its exit code.

Long because it is three tables, each whole: the rows of the contract, the tests, the bad input.
"""

import json
import subprocess
from pathlib import Path

import pytest

from cni_plugin.config import fields
from cni_plugin.kernel import state
from cni_plugin.model.redirection import Redirection

STATUS = 'sidecar.istio.io/status={"containers":["istio-proxy"]}'
GENERIC = {
    "proxyUids": [101],
    "proxyGids": [102],
    "tunnelPort": 15008,
    "excludeInboundCidrs": ["10.9.9.0/24"],
    "excludeInboundPorts": [9090],
    "includeInboundPorts": ["8000-8100", 9090, 15008],
    "excludeInterfaces": ["eth1"],
    "excludeOutboundPorts": [25],
    "excludeOutboundPortsForUids": [{"uids": ["2000-2999"], "ports": [443], "protocol": "tcp"}],
    "excludeOutboundCidrs": ["10.8.0.0/16"],
    "includeOutboundPorts": [7000],
    "includeOutboundCidrs": ["10.0.0.0/8", "fd00::/8"],
    "dns": ["10.96.0.10"],
    "udp443": "reject",
}
# A probe, the row of the contract that decides it, and the outcome.
ROWS = [
    ("in src=10.2.0.1 port=8080 if=eth1", "I1", "pass", 0),
    ("in src=10.9.9.1 port=8080", "I2", "pass", 0),
    ("in src=10.2.0.1 port=9090", "I3", "pass", 0),
    ("in src=10.2.0.1 port=15008", "I3", "pass", 0),
    ("in src=10.2.0.1 port=8080", "I4", "redirect", 15006),
    ("in src=fd00::9 port=8080", "I4", "redirect", 15006),
    ("in src=10.2.0.1 port=22", "I5", "pass", 0),
    ("in src=10.1.2.3 port=8080", "I5", "pass", 0),
    ("out dst=10.2.0.1:80 if=eth1", "O1", "pass", 0),
    ("dst=10.2.0.1:25", "O2", "pass", 0),
    ("uid=2500 dst=10.2.0.1:443", "O2", "pass", 0),
    ("src=127.0.0.6 dst=10.1.2.3:8080", "O3", "pass", 0),
    ("uid=101 dst=10.1.2.3:8080", "O4", "redirect", 15006),
    ("gid=102 dst=10.1.2.3:8080", "O4", "redirect", 15006),
    ("uid=101 dst=10.2.0.1:80", "O5", "pass", 0),
    ("gid=102 dst=10.96.0.10:53 proto=udp", "O5", "pass", 0),
    ("uid=1000 dst=10.96.0.10:53 proto=udp", "O6", "redirect", 15053),
    ("uid=1000 dst=10.96.0.10 port=53", "O6", "redirect", 15053),
    ("uid=1000 dst=127.0.0.1:8080", "O7", "pass", 0),
    ("uid=1000 dst=10.1.2.3:8080", "O7", "pass", 0),
    ("uid=1000 dst=10.8.0.1:80", "O8", "pass", 0),
    ("uid=1000 dst=192.0.2.1:7000", "O9", "redirect", 15001),
    ("uid=1000 dst=10.2.0.1:443", "O10", "redirect", 15001),
    ("uid=1000 dst=[fd00::9]:443", "O10", "redirect", 15001),
    ("uid=1000 dst=fd00::9 port=443", "O10", "redirect", 15001),
    ("uid=1000 dst=10.2.0.1:443 proto=udp", "udp443", "reject", 0),
    ("uid=1000 dst=192.0.2.1:80", "O11", "pass", 0),
]


@pytest.fixture
def netconf(tmp_path):
    """Return a function that writes a plugin object and returns its path."""

    def write(**more):
        path = tmp_path / "netconf.json"
        path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "mesh-redirect", **more}))
        return str(path)

    return write


def explained(ran) -> dict:
    """Return the JSON that a successful run printed."""
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def test_every_row_of_the_contract_can_be_asked_for(command, netconf):
    """Red: explain judges a probe differently from the contract, or cannot say which row decides."""
    path = netconf(redirection=GENERIC)
    asked = [word for probe, *_ in ROWS for word in ("--probe", probe)]
    ran = command("explain", "--netconf", path, "--ip", "10.1.2.3", "--ip", "fd00::3", "--json", *asked)
    judged = explained(ran)["probes"]
    assert [(one["probe"], one["row"], one["action"], one["port"]) for one in judged] == ROWS
    assert all(one["why"].endswith(".") for one in judged)


def test_probe_list_holds_every_row():
    """Red: a row of the contract is not tried above."""
    rows = {f"I{number}" for number in range(1, 6)} | {f"O{number}" for number in range(1, 12)} | {"udp443"}
    assert {row for _, row, *_ in ROWS} == rows


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_text_shows_decision_values_origins_rules_and_probes(command, netconf, backend, mode):
    """Red: one of the five things explain promises is not printed, for one of the backends."""
    ran = command(
        *("explain", "--netconf", netconf(redirection={**GENERIC, "inbound": mode}), "--backend", backend),
        *("--ip", "10.1.2.3", "--ip", "fd00::3", "--probe", "uid=1000 dst=10.2.0.1:443"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "redirect: configured (mesh generic)" in ran.stdout
    assert any(
        line.split() == ["outboundPort", "15001", "built-in", "default"] for line in ran.stdout.splitlines()
    )
    assert "netconf redirection.dns" in ran.stdout
    assert f"rules, {backend}" in ran.stdout
    assert "15006" in ran.stdout.split("rules,")[1]
    assert "O10" in ran.stdout.rsplit("probes", 1)[1]


def test_piped_text_is_not_cut_off(command, netconf):
    """Red: the rest of a long list is replaced by dots, and grep does not find it."""
    prefixes = [f"10.{number}.0.0/24" for number in range(250)]
    ran = command("explain", "--netconf", netconf(redirection={**GENERIC, "excludeOutboundCidrs": prefixes}))
    table = ran.stdout.split("rules,")[0]
    assert all(prefix in table for prefix in prefixes)


def test_conflist_gives_its_version_and_name_to_our_object(command, tmp_path):
    """Red: the file a node really has cannot be explained."""
    path = tmp_path / "net.conflist"
    ours = {"type": "mesh-redirect", "redirection": GENERIC}
    plugins = [{"type": "bridge"}, ours, {"type": "portmap"}]
    path.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}))
    assert explained(command("explain", "--netconf", str(path), "--json"))["verdict"] == "redirect"


def test_annotations_decide_from_file_and_flag(command, netconf, tmp_path):
    """Red: an annotation on the command line is not what the plugin would read from the runtime."""
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"}))
    ran = command(
        *("explain", "--netconf", netconf(mesh="istio"), "--json", "--annotations", str(annotations)),
        *("--annotation", STATUS, "--args", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"),
    )
    found = explained(ran)
    assert (found["verdict"], found["reason"], found["mesh"]) == ("redirect", "meshed", "istio")
    assert found["redirection"]["excludeOutboundPorts"] == [3306]
    origin = "annotation traffic.sidecar.istio.io/excludeOutboundPorts"
    assert found["origins"]["excludeOutboundPorts"] == origin
    assert any("runAsUser" in text for text in found["unknown"])
    assert found["families"] == [4, 6]


def test_annotations_from_stdin(command, netconf):
    """Red: `kubectl ... | mesh-redirect explain` needs a temporary file."""
    key, _, value = STATUS.partition("=")
    ran = command(
        *("explain", "--netconf", netconf(mesh="istio"), "--annotations", "-", "--json"),
        stdin=json.dumps({key: value}),
    )
    assert explained(ran)["verdict"] == "redirect"


def test_unmeshed_pod_is_explained_with_exit_code_0(command, netconf):
    """Red: "not meshed" looks like a failure to scripts, or its probes are judged as if it were."""
    ran = command(
        *("explain", "--netconf", netconf(mesh="istio"), "--annotation", "a=b", "--json"),
        *("--probe", "uid=1 dst=10.1.1.1:80"),
    )
    found = explained(ran)
    assert (found["verdict"], found["reason"]) == ("pass", "not-meshed")
    assert "redirection" not in found
    assert (found["probes"][0]["row"], found["probes"][0]["action"]) == ("", "pass")
    text = command("explain", "--netconf", netconf(mesh="istio"), "--annotation", "a=b")
    assert "pass: not-meshed" in text.stdout


def test_undecidable_pod_says_what_is_missing(command, netconf):
    """Red: who wonders why pods do not start is not told which line the conflist lacks."""
    ran = command(
        "explain", "--netconf", netconf(mesh="istio"), "--args", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"
    )
    assert ran.returncode == 0
    assert "retry: annotations-missing" in ran.stdout
    assert "io.kubernetes.cri.pod-annotations" in ran.stdout


def test_warnings_are_shown(command, netconf):
    """Red: a bypass the operator was to know of is not told."""
    path = netconf(redirection={"proxyUids": [0], "families": "ipv4"})
    ran = command("explain", "--netconf", path, "--ip", "10.1.2.3", "--ip", "fd00::3")
    assert "IPv6 (fd00::3) bypasses the mesh" in ran.stdout
    assert "uid 0 is an owner" in ran.stdout


def record(**more) -> dict:
    """Return an attachment record as ADD writes it."""
    redirection = Redirection(proxy_uids=((101, 101),), outbound_port=4140)
    return {
        "containerId": "c1",
        "ifname": "eth0",
        "netns": "/run/netns/c1",
        "network": "net",
        "mesh": "generic",
        "verdict": "redirect",
        "reason": "configured",
        "detail": "as recorded",
        "unknown": [],
        "warnings": [],
        "origins": {"outboundPort": "netconf redirection.outboundPort"},
        "families": [4],
        "backend": "iptables",
        "refused": {"nftables": "no nf_tables"},
        "timings": {"total": 1.0},
        "redirection": fields.to_json(redirection),
        **more,
    }


def written(directory: Path, entry: dict) -> str:
    """Write a record and return the state directory."""
    state.Draft(str(directory), entry["containerId"], entry["ifname"]).commit(entry)
    return str(directory)


def test_recorded_attachment_is_explained_as_it_was_decided(command, tmp_path):
    """Red: what is explained is not what ADD installed."""
    where = written(tmp_path, record())
    ran = command(
        *("explain", "--attachment", "c1", "--state-dir", where, "--json"), "--probe", "uid=1 dst=10.2.0.1:80"
    )
    found = explained(ran)
    assert (found["detail"], found["backend"], found["families"]) == ("as recorded", "iptables", [4])
    assert found["refused"] == {"nftables": "no nf_tables"}
    assert found["redirection"]["outboundPort"] == 4140
    assert "4140" in found["rules"]["ipv4"]
    assert found["probes"][0]["port"] == 4140
    text = command("explain", "--attachment", "c1:eth0", "--state-dir", where).stdout
    assert "no nf_tables" in text


def test_recorded_pass_is_explained(command, tmp_path):
    """Red: explain fails for the attachments that most often raise the question."""
    entry = record(verdict="pass", reason="not-meshed", redirection=None, origins={})
    for key in ("families", "backend", "refused"):
        del entry[key]
    found = explained(
        command("explain", "--attachment", "c1", "--state-dir", written(tmp_path, entry), "--json")
    )
    assert (found["verdict"], found["reason"], found["probes"]) == ("pass", "not-meshed", [])


BAD = [
    (["--netconf", "/nonexistent"], "/nonexistent: No such file"),
    (["--netconf", "CONF", "--backend", "magic"], "--backend: 'magic' is not valid, expected \"nftables\""),
    (["--netconf", "CONF", "--ip", "10.1.2"], "--ip: '10.1.2' is not valid"),
    (["--netconf", "CONF", "--args", "nonsense"], "CNI_ARGS"),
    (["--netconf", "CONF", "--annotation", "novalue"], "--annotation: 'novalue'"),
    (["--netconf", "CONF", "--annotations", "CONF2"], "expected a string"),
    (["--netconf", "CONF", "--probe", "uid=1"], "dst=ADDRESS is missing"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1"], "the port is missing"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:x"], "port: 'x' is not valid"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:80 uid=root"], "uid: 'root' is not valid"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:80 colour=red"], "'colour=red' is not one of"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:80 uid=1 uid=2"], "'uid=2' is not one of"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:80 src=fd00::1"], "different families"),
    (["--netconf", "CONF", "--probe", "dst=10.1.1.1:80 proto=sctp"], "proto: 'sctp'"),
    (["--netconf", "CONF", "--probe", ""], "dst=ADDRESS is missing"),
    (["--netconf", "CONF2"], "cniVersion"),
    (["--netconf", "TEXT"], "not JSON"),
    (["--netconf", "LIST"], "no plugin of type mesh-redirect in this conflist; its types: bridge"),
    (["--attachment", "../../etc"], "--attachment: '../../etc' is not valid"),
    (["--attachment", "nosuch", "--state-dir", "EMPTY"], "no record of nosuch:eth0"),
    (["--attachment", "nosuch", "--annotation", "a=b"], "are for --netconf alone"),
    (["--attachment", "broken", "--state-dir", "EMPTY"], "damaged"),
    (["--attachment", "short", "--state-dir", "EMPTY"], "damaged"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(command, tmp_path, arguments, message):
    """Red: a slip of the keyboard gives a traceback, or an explanation of something else."""
    plugins = [{"type": "bridge"}]
    contents = {
        "CONF": json.dumps({"cniVersion": "1.0.0", "name": "net", "redirection": GENERIC}),
        "CONF2": json.dumps({"cniVersion": 7}),
        "TEXT": "hello",
        "LIST": json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    attachments = tmp_path / "EMPTY" / "attachments"
    attachments.mkdir(parents=True)
    (attachments / "broken:eth0.json").write_text("{")
    (attachments / "short:eth0.json").write_text("{}")
    named = {*contents, "EMPTY"}
    ran = command("explain", *(str(tmp_path / word) if word in named else word for word in arguments))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_reader_that_closes_early_is_no_error_message(command, netconf):
    """Red: `mesh-redirect explain ... | head -1` ends in a traceback."""
    path = netconf(redirection=GENERIC)
    binary = command("version").args[0]
    script = f"'{binary}' explain --netconf '{path}' | true"
    ran = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert ran.stderr == ""
