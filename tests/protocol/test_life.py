"""An attachment's life as bad luck makes it: calls at once, killed calls, damaged state, other attachments."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import effects
from tests.lab.namespace import Namespace
from tests.protocol.caller import OWNED

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TPROXY = {**OWNED, "inbound": "tproxy", "tproxyMark": 77, "tproxyTable": 78}
PREV = {"cniVersion": "1.1.0", "ips": []}
# The plugin, signalled when the rules are in the kernel and the record is about to be put in place.
SIGNALLED = """
import os, sys
sys.path.insert(0, {root!r})
os.fsync = lambda fd: os.kill(os.getpid(), {number})
from cni_plugin.plugin import main
sys.exit(main())
"""


def signalled(call, number, **more):
    """Run an ADD that gets a signal half-way; return its exit code and answer."""
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-IS", "-c", SIGNALLED.format(root=ROOT, number=number)],
        input=json.dumps(call.netconf(**more)).encode(),
        env={**call.env, "CNI_COMMAND": "ADD"},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def empty(sandbox):
    """Return a sandbox, and what it holds before any ADD."""
    sandbox.run("ip", "link", "set", "lo", "up")
    return sandbox, effects.everything(sandbox)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_adds_at_once_for_one_attachment(call, empty, backend):
    """Red: of two ADDs one fails, undoes the other's rules, or doubles them."""
    sandbox, before = empty
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call("ADD", redirection=OWNED, backends=[backend]), range(8)))
    for answer in answers:
        answer.success()
    call("CHECK", prevResult=PREV).success()
    assert call.records() == ["c1:eth0.json"]
    call("DEL").success()
    assert effects.everything(sandbox) == before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("earlier", [None, "nftables", "iptables"])
@pytest.mark.parametrize("then", ["DEL", "GC", "ADD", "pass"])
def test_a_killed_add_is_cleared_up(call, empty, backend, earlier, then):
    """Red: rules, routes or a draft of a killed ADD stay for ever, beside another backend's or after DEL."""
    sandbox, before = empty
    if earlier:
        call("ADD", redirection=OWNED, backends=[earlier]).success()
    assert signalled(call, 9, redirection=TPROXY, backends=[backend])[0] == -9
    if then == "ADD":
        other = "iptables" if backend == "nftables" else "nftables"
        call("ADD", redirection=OWNED, backends=[other]).success()
        call("CHECK", prevResult=PREV).success()
        assert bool(effects.nft(sandbox)) == (other == "nftables")
        assert call.records() == ["c1:eth0.json"]
        call("DEL").success()
    elif then == "pass":
        call("ADD", env={"CNI_ARGS": "MESH_REDIRECT=false"}).success()
        assert effects.everything(sandbox) == before
        call("DEL").success()
    else:
        call(then, **{"cni.dev/valid-attachments": []}).success()
    assert effects.everything(sandbox) == before
    assert call.records() == []


def test_a_signal_waits_for_what_is_begun(call, sandbox):
    """Red: an ADD told to stop answers that it failed, and leaves rules that no record knows."""
    code, answer = signalled(call, 15, redirection=OWNED)
    assert (code, json.loads(answer)["cniVersion"]) == (0, "1.1.0")
    assert call.records() == ["c1:eth0.json"]
    call("CHECK", prevResult=PREV).success()


def test_del_leaves_other_attachments_alone(call, sandbox):
    """Red: a late DEL for a path used again, or for a second interface, takes a living pod's redirection."""
    call("ADD", redirection=OWNED).success()
    call("ADD", redirection=OWNED, env={"CNI_IFNAME": "net1"}).success()
    call("DEL", env={"CNI_IFNAME": "net1"}).success()
    call("DEL", env={"CNI_CONTAINERID": "c0"}).success()
    call("CHECK", prevResult=PREV).success()
    other = Namespace()
    try:
        c2 = {"CNI_CONTAINERID": "c2", "CNI_NETNS": other.path}
        call("ADD", redirection=OWNED, env=c2).success()
        call("DEL", env={"CNI_NETNS": other.path}).success()
        call("CHECK", prevResult=PREV, env=c2).success()
    finally:
        other.close()
    assert call.records() == ["c2:eth0.json"]


@pytest.mark.parametrize(
    "damage",
    [
        {"families": None},
        {"backend": "carrier pigeon"},
        {"redirection": {"nope": 1}},
        {"redirection": None},
        {"families": [5]},
        {"netns": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_damaged_record_stops_nobody(call, empty, damage, verb):
    """Red: half a record, or one of another version, keeps a sandbox from being set up or removed."""
    sandbox, before = empty
    call("ADD", redirection=OWNED, backends=["iptables"]).success()
    path = os.path.join(call.state_dir, "attachments", "c1:eth0.json")
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**record, **damage}, file)
    assert call("CHECK", prevResult=PREV).error()["code"] == 106
    if verb == "ADD":
        call("ADD", redirection=OWNED, backends=["nftables"]).success()
        call("CHECK", prevResult=PREV).success()
        assert effects.iptables(sandbox) == before["iptables"]
    call("DEL").success()
    assert effects.everything(sandbox) == before
    assert call.records() == []


def test_del_with_a_state_dir_that_is_none(call, empty):
    """Red: a state directory that became a file keeps every sandbox of the node, and its rules."""
    sandbox, before = empty
    call("ADD", redirection=OWNED).success()
    os.rename(call.state_dir, call.state_dir + ".lost")
    with open(call.state_dir, "w", encoding="utf-8"):
        pass
    call("DEL").success()
    assert effects.everything(sandbox) == before
    assert call("GC", **{"cni.dev/valid-attachments": []}).code == 0


def test_a_caller_that_ignores_its_children(call):
    """Red: SIGCHLD is ignored where the runtime ignores it, and no child's success can be told from failure."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"trap '' CHLD; exec {call.executable}"],
        input=json.dumps(call.netconf(redirection=OWNED, backends=["iptables"])).encode(),
        env={**call.env, "CNI_COMMAND": "ADD"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("nothing", [{"uids": [5], "ports": []}, {"uids": [], "ports": [80]}], ids=str)
def test_an_exclusion_of_nothing_excludes_nothing(call, backend, nothing):
    """Red: an empty list in a list is refused by the kernel's tools, or taken for everything."""
    redirection = {**OWNED, "excludeOutboundPortsForUids": [nothing]}
    call("ADD", redirection=redirection, backends=[backend]).success()
    call("CHECK", redirection=redirection, prevResult=PREV).success()


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_redirection_without_rules(call, empty, backend):
    """Red: both directions off is no rule at all, and CHECK misses the rules."""
    sandbox, before = empty
    redirection = {**OWNED, "inbound": "off", "outbound": "off"}
    call("ADD", redirection=redirection, backends=[backend]).success()
    call("CHECK", redirection=redirection, prevResult=PREV).success()
    call("DEL").success()
    assert effects.everything(sandbox) == before


# Calls the plugin with its own view of the file system: mounts made in there are gone with it.
HIDDEN = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$0"'


def test_a_state_directory_gone_read_only_does_not_keep_the_sandbox(call, empty):
    """Red: DEL fails for ever, and the pod is never gone, because its record cannot be removed."""
    sandbox, before = empty
    call("ADD", redirection=OWNED).success()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", HIDDEN, call.executable, call.state_dir],
        input=json.dumps(call.netconf()).encode(),
        env={**call.env, "CNI_COMMAND": "DEL"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"cannot be" in done.stderr or b"Read-only" in done.stderr
    assert effects.everything(sandbox) == before


UNLISTED = """
import errno, sys
sys.path.insert(0, {root!r})
from cni_plugin.kernel import state
def attachments(state_dir):
    raise OSError(errno.EIO, "Input/output error")
state.attachments = attachments
from cni_plugin.plugin import main
sys.exit(main())
"""


def test_a_delete_that_removed_no_rules_is_no_success(call, empty):
    """Red: DEL could not tell whose rules these are, left them, and said that it was done."""
    sandbox, before = empty
    call("ADD", redirection=OWNED).success()
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-IS", "-c", UNLISTED.format(root=ROOT)],
        input=json.dumps(call.netconf()).encode(),
        env={**call.env, "CNI_COMMAND": "DEL"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 100)
    call("DEL").success()
    assert effects.everything(sandbox) == before
