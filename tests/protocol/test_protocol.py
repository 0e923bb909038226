"""The spec's promises about a call: what is printed, when, and with which exit code.

Long, because every verb's promises are here, to be read beside sections 2 and 5 of the spec.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from cni_plugin.config.netconf import VERSIONS
from tests.lab import effects
from tests.protocol.caller import OWNED, POD, Answer

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "veth1"},
        {"name": "eth0", "sandbox": "/run/netns/x", "socketPath": "", "own": [1]},
    ],
    "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1, "own": None}],
    "routes": [{"dst": "0.0.0.0/0", "own": {}}],
    "dns": {"nameservers": ["10.96.0.10"], "own": "ü\ud800"},
    "own": {"deep": [{"a": 1.5}]},
}
# A stand-in for the verbs, which misbehaves in one way.
FAKE = """\
import os, sys, types
sys.path.insert(0, {root!r})
import cni_plugin
verbs = types.ModuleType("cni_plugin.verbs")
def add(request):
    {body}
    return {{"cniVersion": "1.1.0", "ips": []}}
verbs.log_failure = lambda request, error: None
verbs.add = verbs.delete = verbs.check = verbs.gc = verbs.status = add
cni_plugin.verbs = sys.modules["cni_plugin.verbs"] = verbs
from cni_plugin.plugin import main
sys.exit(main())
"""


def misbehaving(call, body: str) -> Answer:
    """Call ADD with a verb that does `body`."""
    command = [sys.executable, "-IS", "-c", FAKE.format(root=ROOT, body=body)]
    env = {**call.env, "CNI_COMMAND": "ADD"}
    done = subprocess.run(
        command, input=json.dumps(call.netconf()).encode(), env=env, capture_output=True, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr.decode())


# --- VERSION, and a person ---


@pytest.mark.parametrize("version", VERSIONS)
def test_version_echoes(call, version):
    """Red: a runtime that speaks this version thinks we do not."""
    assert call("VERSION", {"cniVersion": version}).success().json == {
        "cniVersion": version,
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    "stdin", [b"", b"{", b"[]", b"{}", b'{"cniVersion": "0.1.0"}', b'{"cniVersion": 1}', b"\xff"]
)
def test_version_answers_anything(call, stdin):
    """Red: a runtime that probes with nothing, or with a version we do not know, learns nothing."""
    everything_missing = dict.fromkeys(call.env)
    assert call("VERSION", stdin, env=everything_missing).success().json["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("command", [None, ""])
def test_a_person_is_told_what_it_is(call, command):
    """Red: somebody who runs the file in /opt/cni/bin gets a traceback, or JSON."""
    answer = call("", b"", env={"CNI_COMMAND": command}).success()
    assert answer.stdout == b""
    assert "mesh-redirect --help" in answer.stderr
    assert "1.1.0" in answer.stderr


# --- stdout ---


@pytest.mark.parametrize("body", [
    'print("noise")',
    'os.write(1, b"noise")',
    'sys.stdout.write("noise"); sys.stdout.flush()',
    'os.system("echo noise")',
])  # fmt: skip
def test_nothing_else_on_stdout(call, body):
    """Red: a print in any module, or a child's output, makes the answer unreadable to the runtime."""
    answer = misbehaving(call, body)
    assert answer.success().json == {"cniVersion": "1.1.0", "ips": []}
    assert answer.stdout.count(b"\n") == 1
    assert "noise" in answer.stderr


@pytest.mark.parametrize(("body", "code", "word"), [
    ("raise RuntimeError('one\\ntwo')", 199, "RuntimeError: one two"),
    ("raise MemoryError", 199, "MemoryError"),
    ("add(request)", 199, "RecursionError"),
    ("sys.exit('stop')", 199, "SystemExit: stop"),
    ("raise KeyboardInterrupt", 11, "signal"),
    (f"os.kill(os.getpid(), {signal.SIGTERM:d}); import time; time.sleep(60)", 11, "signal"),
    (f"os.kill(os.getpid(), {signal.SIGINT:d}); import time; time.sleep(60)", 11, "signal"),
    ("return {'x': {1, 2}}", 199, "TypeError"),
    ("import there_is_none", 199, "ModuleNotFoundError"),
    ("from cni_plugin.model.errors import CniError; raise CniError(104, 'm', 'd')", 104, "m"),
])  # fmt: skip
def test_every_failure_is_one_error(call, body, code, word):
    """Red: a bug or a signal leaves the runtime without an error object, or with a traceback in it."""
    answer = misbehaving(call, body)
    error = answer.error()
    assert (error["code"], error["cniVersion"]) == (code, "1.1.0")
    assert word in error["msg"]
    assert ("Traceback" in answer.stderr) == (code == 199)


def test_a_failing_call_is_in_the_log(call):
    """Red: why a pod does not start is only in an answer that the runtime may have thrown away."""
    error = call("ADD", env={"CNI_NETNS": "/nonexistent", "CNI_ARGS": POD}, redirection=OWNED).error()
    with open(os.path.join(call.state_dir, "plugin.log"), encoding="utf-8") as file:
        (line,) = map(json.loads, file)
    assert (line["level"], line["verb"], line["pod"]) == ("error", "ADD", "default/app-1")
    assert (line["code"], line["error"]) == (error["code"], error["msg"])


@pytest.mark.parametrize("how", [">/dev/full", ">&-", "<&- >&- 2>&-", "2>&- >/dev/full", "| true"])
def test_nobody_takes_the_answer(call, how):
    """Red: a closed or full stdout gives a traceback, a hang, or a success nobody has heard of."""
    script = f"sleep 0.1 | {call.executable} {how}; exit ${{PIPESTATUS[1]}}"
    env = {**call.env, "CNI_COMMAND": "FOO"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_full_pipe_takes_the_answer_in_parts(call):
    """Red: a large Result through a non-blocking pipe with a slow reader is cut off."""
    given = {**PREV, "own": "x" * 1_000_000}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    env = {**call.env, "CNI_COMMAND": "ADD"}
    with subprocess.Popen(
        [call.executable], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.DEVNULL, env=env
    ) as process:
        os.close(writing)
        process.stdin.write(json.dumps(call.netconf(prevResult=given)).encode())
        process.stdin.close()
        with os.fdopen(reading, "rb") as pipe:
            assert json.loads(pipe.read()) == given
    assert process.returncode == 0


def test_errors_speak_the_callers_version(call):
    """Red: the error object is of another version than the request."""
    assert call("ADD", cniVersion="0.4.0", mesh=5).error()["cniVersion"] == "0.4.0"
    assert call("ADD", cniVersion="9.0.0").error()["cniVersion"] == "1.1.0"
    assert call("ADD", b"{").error()["cniVersion"] == "1.1.0"


# --- environment and versions, verb by verb ---


@pytest.mark.parametrize(("command", "required"), [
    ("ADD", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
    ("DEL", ("CNI_CONTAINERID", "CNI_IFNAME")),
    ("CHECK", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
    ("GC", ("CNI_PATH",)),
])  # fmt: skip
def test_required_environment(call, command, required):
    """Red: a verb runs without a variable the spec requires, or does not name all that are missing."""
    error = call(command, env=dict.fromkeys(call.env)).error()
    assert error["code"] == 4
    named = error["msg"].replace(",", "").split()
    assert [word for word in named if word.startswith("CNI_")] == list(required)


def test_optional_environment(call):
    """Red: a verb demands a variable that the spec calls optional."""
    call("ADD", redirection=OWNED, env={"CNI_PATH": None, "CNI_ARGS": None}).success()
    call("CHECK", env={"CNI_PATH": None}).success()
    call("DEL", env={"CNI_PATH": None, "CNI_NETNS": None}).success()
    call("STATUS", env=dict.fromkeys(["CNI_PATH", "CNI_NETNS", "CNI_CONTAINERID", "CNI_IFNAME"])).success()
    gone = dict.fromkeys(["CNI_NETNS", "CNI_CONTAINERID", "CNI_IFNAME"])
    call("GC", env=gone, **{"cni.dev/valid-attachments": []}).success()


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_verb_too_young_for_the_version(call, command, since):
    """Red: a verb is answered in a version of the spec that does not have it."""
    for version in VERSIONS[: VERSIONS.index(since)]:
        error = call(command, cniVersion=version).error()
        assert error["code"] == 1
        assert since in error["msg"]


def test_cni_args_with_ignore_unknown(call):
    """Red: IgnoreUnknown=1 does not make the plugin pass over what it cannot read."""
    call("ADD", env={"CNI_ARGS": POD + ";oops"}).success()
    call("ADD", env={"CNI_ARGS": POD + ";TOKEN=a=b=="}).success()


# --- the verbs' answers ---


@pytest.mark.parametrize("version", VERSIONS)
def test_add_answers_prev_result(call, version):
    """Red: ADD drops or changes something of prevResult, or answers in another version."""
    given = json.loads(json.dumps({**PREV, "cniVersion": version}))
    if version < "1":
        given["ips"][0]["version"] = "4"
    for redirection in ({}, OWNED):
        answer = call("ADD", cniVersion=version, prevResult=given, redirection=redirection).success()
        assert answer.json == given
        answer.stdout.decode("utf-8")


def test_add_converts_prev_result(call):
    """Red: a prevResult of another version than the netconf's comes back in the wrong one."""
    answer = call("ADD", cniVersion="0.4.0", prevResult=PREV).success().json
    assert answer["cniVersion"] == "0.4.0"
    assert answer["ips"] == [{**PREV["ips"][0], "version": "4"}]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("absent", [{}, {"prevResult": None}])
def test_add_without_prev_result(call, version, absent):
    """Red: as the first or only plugin ADD fails, or answers what libcni cannot read."""
    assert call("ADD", cniVersion=version, **absent).success().json == {"cniVersion": version, "ips": []}


def test_deep_prev_result_is_read_or_refused(call):
    """Red: a prevResult that can just be read cannot be printed again, after the netns was programmed."""
    outcomes = set()
    for depth in (100, 900, *range(950, 1000), 100_000):
        nested = (
            b'{"cniVersion": "1.1.0", "name": "net", "prevResult": {"x": '
            + b"[" * depth
            + b"]" * depth
            + b"}}"
        )
        answer = call("ADD", nested.replace(b'"name"', f'"stateDir": "{call.state_dir}", "name"'.encode()))
        outcomes.add(0 if answer.code == 0 else answer.error()["code"])
    assert outcomes == {0, 6}


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_silent_on_success(call, command):
    """Red: a verb without a result prints one, which some runtimes take for an error."""
    call("ADD", redirection=OWNED).success()
    attachments = [{"containerID": "c1", "ifname": "eth0"}]
    assert call(command, **{"cni.dev/valid-attachments": attachments}).success().stdout == b""


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_add_check_del(call, sandbox, backend):
    """Red: DEL leaves something, fails the second time, or CHECK does not see the difference."""
    sandbox.run("ip", "link", "set", "lo", "up")
    before = effects.everything(sandbox)
    call("ADD", redirection=OWNED, backends=[backend], prevResult=PREV).success()
    assert effects.everything(sandbox) != before
    assert call.records() == ["c1:eth0.json"]
    call("CHECK", prevResult=PREV).success()
    call("DEL", prevResult=PREV).success()
    assert effects.everything(sandbox) == before
    assert call.records() == []
    call("DEL").success()
    assert call("CHECK").error()["code"] == 104


def test_check_names_a_deleted_rule(call, sandbox):
    """Red: CHECK passes over a rule that somebody has deleted, or does not say which it was."""
    call("ADD", redirection={**OWNED, "excludeOutboundPorts": [9999]}, backends=["nftables"]).success()
    listed = json.loads(sandbox.run("nft", "-j", "list", "ruleset"))["nftables"]
    rule = next(entry["rule"] for entry in listed if "rule" in entry and "redirect" in json.dumps(entry))
    where = [rule["family"], rule["table"], rule["chain"]]
    sandbox.run("nft", "delete", "rule", *where, "handle", str(rule["handle"]))
    error = call("CHECK").error()
    assert error["code"] == 104
    assert "missing" in error["msg"]
    assert rule["chain"] in error["msg"] + error["details"]


@pytest.mark.parametrize("netns", [None, "", "/run/netns/there-is-none", "/proc"])
def test_del_without_netns(call, netns):
    """Red: a sandbox whose netns is gone can never be removed."""
    call("ADD", redirection=OWNED).success()
    assert call("DEL", env={"CNI_NETNS": netns}).success().stdout == b""
    assert call.records() == []
    call("DEL", env={"CNI_NETNS": netns}).success()


def test_del_needs_no_sound_netconf(call, sandbox):
    """Red: a netconf that was broken after ADD keeps every sandbox of the node from being removed."""
    call("ADD", redirection=OWNED).success()
    broken = {
        "redirection": {"x": 1},
        "mesh": 5,
        "backends": ["pf"],
        "prevResult": [],
        "runtimeConfig": 7,
        "agent": 0,
    }
    call("DEL", env={"CNI_ARGS": "oops"}, **broken).success()
    assert call.records() == []
    assert effects.nft(sandbox) == []


def test_gc_keeps_the_valid(call, sandbox):
    """Red: GC removes a living attachment, or leaves a dead one."""
    call("ADD", redirection=OWNED).success()
    call("ADD", redirection=OWNED, env={"CNI_IFNAME": "net1"}).success()
    both = ["c1:eth0.json", "c1:net1.json"]
    keep = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c1", "ifname": "net1"}]
    call("GC", **{"cni.dev/valid-attachments": keep}).success()
    assert call.records() == both
    call("GC", name="other", **{"cni.dev/valid-attachments": []}).success()
    assert call.records() == both
    call("GC", **{"cni.dev/attachments": keep[:1]}).success()
    assert call.records() == both[:1]
    call("GC", **{"cni.dev/valid-attachments": None}).success()
    assert call.records() == []
    assert effects.nft(sandbox) == []


@pytest.mark.parametrize(
    "value", [{}, "c1", [5], [{"containerID": "c1"}], [{"containerID": 1, "ifname": "eth0"}]]
)
def test_gc_without_a_sound_list_removes_nothing(call, value):
    """Red: a list that cannot be read counts as empty, and every attachment is torn down."""
    call("ADD", redirection=OWNED).success()
    assert call("GC", **{"cni.dev/valid-attachments": value}).error()["code"] == 7
    call("GC").success()
    assert call.records() == ["c1:eth0.json"]


def test_status_says_why_not(call, tmp_path):
    """Red: a node that can serve no ADD reports itself ready."""
    call("STATUS").success()
    (tmp_path / "file").write_text("")
    error = call("STATUS", stateDir=str(tmp_path / "file")).error()
    assert error["code"] == 50
    assert "file" in error["msg"]
