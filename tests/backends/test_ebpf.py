"""The eBPF backend's life: what it attaches, pins and keeps, as bpftool and the filesystem show it.

Not its meaning: tests/contract holds that against the other backends. Long because it is one life, from the
first ADD of a node to what nobody remembers.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cni_plugin.backends import pins, policy
from cni_plugin.backends.common import Placement, Unsupported
from cni_plugin.backends.ebpf import Ebpf
from cni_plugin.backends.pins import ATTACHED, Draft
from cni_plugin.kernel import network
from cni_plugin.kernel.netns import cookie, entered
from cni_plugin.model.redirection import ANYWHERE, Redirection
from tests.backends.samples import SAMPLES
from tests.contract.table import BASE
from tests.lab.ground import Cgroup, bpffs, placement
from tests.lab.namespace import Namespace
from tests.lab.need import need
from tests.lab.topology import INBOUND, OUTBOUND, PROXY, Dial, Pod, address

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
APP = {"uid": 1000, "gid": 1000}
EVERYTHING = BASE.replace(dns=ANYWHERE)


@pytest.fixture(autouse=True)
def _needed() -> None:
    need("ebpf")


@pytest.fixture
def pod() -> Iterator[Pod]:
    """Give a pod of the test's own."""
    made = Pod()
    yield made
    made.clear()
    made.close()


def bpftool(*arguments: str) -> Any:
    """Return what bpftool lists, as JSON."""
    done = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def attached(cgroup: str) -> list[int]:
    """Return the ids of the programs that are attached to the cgroup."""
    done = subprocess.run(["bpftool", "cgroup", "show", cgroup], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in done.stdout.splitlines() if line.split()[0].isdecimal()]


def pinned() -> list[str]:
    """Return every pin and directory of the run's bpffs."""
    return sorted(
        os.path.join(directory, name)
        for directory, inner, names in os.walk(bpffs())
        for name in (*inner, *names)
    )


def kept() -> list[str]:
    """Return all that keeps a program, a map or a link alive, attachments apart: pins, and our descriptors."""
    ours = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [*pinned(), *(path for path in ours if os.path.lexists(path) and "bpf" in os.readlink(path))]


def cookie_of(pod: Pod) -> int:
    """Return the cookie of the pod's netns."""
    with entered(pod.path):
        return cookie()


def check(pod: Pod, redirection: Redirection) -> list[str]:
    """Return what CHECK finds."""
    with entered(pod.path):
        return pod.backend("ebpf").check(redirection, (4, 6))


# -- what is there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", SAMPLES.values(), ids=SAMPLES)
def test_check_finds_nothing_after_add(pod: Pod, redirection: Redirection) -> None:
    """CHECK calls changed what nobody has touched."""
    pod.add("ebpf", redirection)
    assert check(pod, redirection) == []


def test_check_finds_what_is_gone(pod: Pod) -> None:
    """CHECK believes pins and records, while nothing runs."""
    pod.add("ebpf", BASE)
    pod.clear("ebpf")
    assert check(pod, BASE)[0] == "the sandbox's policy is missing"
    pod.add("ebpf", BASE)
    backend = pod.backend("ebpf")
    backend._pins.unlink_cgroup(os.stat(pod.cgroup.path).st_ino)
    assert len(check(pod, BASE)) == len(ATTACHED)
    pod.add("ebpf", BASE)
    assert check(pod, BASE) == []
    backend._pins.unlink_inbound(cookie_of(pod))
    assert check(pod, BASE) == ["sk_lookup: the program does not run in the netns"]
    pod.add("ebpf", BASE)
    assert check(pod, BASE) == []


def test_check_finds_what_is_changed(pod: Pod) -> None:
    """CHECK compares no more than presence, and a policy of other ports goes unnoticed."""
    pod.add("ebpf", BASE.replace(outbound_port=9, exclude_outbound_ports=((80, 80),)))
    found = check(pod, BASE)
    assert "policy: outbound_port is changed" in found
    assert any(line.startswith("fact: port 0050") and line.endswith("not ours") for line in found)


def test_delete_leaves_nothing_but_the_nodes_own(pod: Pod) -> None:
    """A link, a pin, a program or a map outlives the attachment: a node fills up with every pod."""
    pod.add("ebpf", EVERYTHING)
    pod.clear("ebpf")
    before = kept()
    for _ in range(30):
        pod.add("ebpf", EVERYTHING)
        pod.add("ebpf", EVERYTHING.replace(inbound_port=OUTBOUND, inbound="tproxy"))
        pod.clear("ebpf")
    assert kept() == before
    assert attached(pod.cgroup.path) == []
    for name in ("policies", "facts", "counters", "ports", "listeners"):
        assert bpftool("map", "dump", "pinned", f"{bpffs()}/mesh-redirect/1/maps/{name}") == []


def test_sandboxes_of_one_cgroup_share_its_links() -> None:
    """A cgroup takes 64 programs of a kind, so the 65th sandbox of a node without pod cgroups is refused."""
    cgroup, first, second = Cgroup(), Namespace(), Namespace()
    backend = Ebpf(placement(cgroup))
    for namespace in (first, second):
        with entered(namespace.path):
            backend.add(BASE, (4, 6))
    assert len(attached(cgroup.path)) == len(ATTACHED)
    with entered(first.path):
        backend.delete(BASE)
    assert len(attached(cgroup.path)) == len(ATTACHED)
    with entered(second.path):
        assert backend.check(BASE, (4, 6)) == []
        backend.delete(BASE)
    assert attached(cgroup.path) == []
    for made in (first, second, cgroup):
        made.close()


# -- who is redirected -----------------------------------------------------------------------------


def test_others_in_the_cgroup_are_not_touched(pod: Pod) -> None:
    """A process of the same cgroup in another netns is redirected: the whole node, where the root is attached to."""
    pod.add("ebpf", EVERYTHING)
    other = Namespace(cgroup=pod.cgroup)
    other.run("ip", "link", "set", "lo", "up")
    other.ask("listen", specs=[{"protocol": "tcp", "family": 4, "port": 80, "tag": "other:"}])
    asked = {"to": "127.0.0.1", "port": 80, "protocol": "tcp", "timeout": 5, "uid": 1000}
    assert other.ask("dial", specs=[asked])[0]["port"] == 80
    other.close()


def test_the_cgroup_decides_outbound_and_the_netns_inbound(pod: Pod) -> None:
    """What is said of a process that entered the netns alone is not so: it is not redirected, arrivals are."""
    pod.add("ebpf", EVERYTHING)
    script = "import socket; s = socket.create_connection(('10.1.2.3', 80)); print(s.recv(4096).decode())"
    seen = json.loads(pod.namespace.run("python3", "-c", script))
    assert seen["tag"].startswith("outside")
    assert pod.outside.dial(address("own", 4), 80).port == INBOUND


# -- the proxy comes and goes ----------------------------------------------------------------------


def listen(pod: Pod, port: int, **kind: Any) -> None:
    """Have the proxy listen."""
    pod.listen(port, uid=PROXY, gid=PROXY, protocols=("tcp",), **kind)


@FAMILIES
def test_a_proxy_that_starts_later_and_again(pod: Pod, family: int) -> None:
    """Traffic goes by a proxy that is not there, or is refused for good once it was not."""
    pod.unlisten(INBOUND, OUTBOUND)
    pod.add("ebpf", EVERYTHING)
    own, service = address("own", family), address("service", family)
    for _ in range(3):
        assert pod.outside.dial(own, 80).result == "refused"
        assert pod.dial(service, 80, **APP).result == "refused"
        listen(pod, INBOUND)
        listen(pod, OUTBOUND)
        assert pod.outside.dial(own, 80).port == INBOUND
        assert pod.dial(service, 80, **APP).port == OUTBOUND
        pod.unlisten(INBOUND, OUTBOUND)


@FAMILIES
def test_listeners_of_a_group_come_and_go(pod: Pod, family: int) -> None:
    """A worker of the proxy ends, and with its listener all that were found through it."""
    pod.unlisten(INBOUND)
    listen(pod, INBOUND, reuseport=True, tag="old")
    pod.add("ebpf", EVERYTHING)
    own = address("own", family)
    for tag in ("a", "b", "c"):
        listen(pod, INBOUND, reuseport=True, tag=tag)
    assert len({pod.outside.dial(own, 80).tag for _ in range(64)}) > 1
    pod.namespace.ask("unlisten", port=INBOUND, tag="pod:old")
    pod.namespace.ask("unlisten", port=INBOUND, tag="pod:a")
    assert {pod.outside.dial(own, 80).tag for _ in range(32)} <= {"b", "c"}


def test_another_port_finds_listeners_of_before(pod: Pod) -> None:
    """A redirection that names another port of the proxy's reaches only what listens from then on."""
    pod.add("ebpf", BASE)
    assert pod.outside.dial("10.50.0.2", 80).port == INBOUND
    for port in (OUTBOUND, INBOUND, OUTBOUND):
        pod.add("ebpf", BASE.replace(inbound_port=port))
        assert pod.outside.dial("10.50.0.2", 80).port == port


def test_a_listener_of_the_other_family_is_none(pod: Pod) -> None:
    """IPv6 reaches the application when the proxy listens on IPv4 alone."""
    pod.unlisten(INBOUND)
    listen(pod, INBOUND, families=(4,))
    pod.add("ebpf", BASE)
    assert pod.outside.dial(address("own", 4), 80).port == INBOUND
    assert pod.outside.dial(address("own", 6), 80).result == "refused"


# -- while it happens ------------------------------------------------------------------------------


def test_no_connection_goes_astray_while_add_is_repeated(pod: Pod) -> None:
    """A connection made while a redirection is replaced bypasses the proxy, or learns another's destination."""
    wanted = [EVERYTHING.replace(exclude_outbound_ports=((port, port),)) for port in (9090, 8085)]
    pod.add("ebpf", wanted[0])
    targets = [("10.1.2.3", 80), ("2001:db8:1::3", 443), ("10.2.2.3", 8080)]
    dials = [Dial(to=to, port=port, **APP) for _ in range(300) for to, port in targets]
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pod.dial_all, dials)
        rounds = 0
        while not running.done():
            pod.add("ebpf", wanted[rounds % 2])
            rounds += 1
        seen = running.result()
    assert rounds > 3
    assert {(one.result, one.where, one.port) for one in seen} == {("connected", "pod", OUTBOUND)}
    assert [one.original for one in seen] == [(dial.to, dial.port) for dial in dials]


def test_port_reuse_learns_no_destination_of_before(pod: Pod) -> None:
    """A client takes over a port whose last owner never reached the proxy, and is told its destination."""
    pod.add("ebpf", EVERYTHING.replace(outbound_port=15999))
    kind = {**APP, "source": "10.50.0.2", "source_port": 41000}
    assert pod.dial("10.1.2.3", 80, **kind).result == "refused"
    listen(pod, 15999)
    assert pod.dial("10.2.2.3", 443, **kind).original == ("10.2.2.3", 443)
    direct = pod.dial("127.0.0.1", 15999, **{**APP, "source": "10.50.0.2", "source_port": 41001})
    assert direct.original in (("127.0.0.1", 15999), None)


# -- what is not ours ------------------------------------------------------------------------------


LARGE = """
import socket
a = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
print(len(a.getsockopt(socket.IPPROTO_IP, 16, 5000)), len(a.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4)))
"""


def test_other_options_are_left_alone(pod: Pod) -> None:
    """getsockopt of more than a page is cut short, for every process of the pod."""
    plain = subprocess.run(["python3", "-c", LARGE], capture_output=True, text=True, check=False)
    pod.add("ebpf", EVERYTHING)
    enter = f"echo $$ > {pod.cgroup.path}/cgroup.procs; exec nsenter --net={pod.path} python3 -c '{LARGE}'"
    inside = subprocess.run(["sh", "-c", enter], capture_output=True, text=True, check=False)
    assert (inside.stdout, inside.returncode) == (plain.stdout, plain.returncode)


# -- where it is not possible ----------------------------------------------------------------------


def refusal(place: Placement, redirection: Redirection = BASE) -> str:
    """Return why the backend refuses in a scratch netns."""
    namespace = Namespace()
    try:
        with entered(namespace.path), pytest.raises(Unsupported) as refused:
            Ebpf(place).probe(redirection, (4, 6))
    finally:
        namespace.close()
    return refused.value.reason


def test_a_probe_says_what_is_missing(tmp_path: object) -> None:
    """A node without a bpffs or cgroup2 fails the ADD, where the next backend would have done."""
    assert "no bpffs is mounted" in refusal(Placement(bpffs=str(tmp_path), cgroup="/proc"))
    assert "is no cgroup of version 2" in refusal(Placement(bpffs=bpffs(), cgroup=str(tmp_path)))
    assert "No such file" in refusal(Placement(bpffs=f"{tmp_path}/none"))


PASSING = 'SEC("cgroup/connect4") int pass(void *ctx) { return 1; } char LICENSE[] SEC("license") = "GPL";'


def test_an_ancestor_that_allows_no_other_program(tmp_path: object) -> None:
    """Ours is refused by the kernel in the middle of an ADD, or silences somebody else's load balancer."""
    source, built = f"{tmp_path}/pass.c", f"{tmp_path}/pass.o"
    with open(source, "w", encoding="utf-8") as file:
        file.write(f"#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n{PASSING}\n")
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-idirafter", headers, "-c", source, "-o", built], check=True
    )
    pin = f"{bpffs()}/theirs"
    subprocess.run(["bpftool", "prog", "load", built, pin], check=True)
    cgroup = Cgroup()
    child = f"{cgroup.path}/child"
    os.mkdir(child)
    try:
        for flags, refused in (([], True), (["override"], True), (["multi"], False)):
            attach = ["bpftool", "cgroup", "attach", cgroup.path, "connect4", "pinned", pin]
            subprocess.run([*attach, *flags], check=True)
            place = Placement(bpffs=bpffs(), cgroup=child)
            if refused:
                assert "allows no other" in refusal(place)
            else:
                namespace = Namespace()
                with entered(namespace.path):
                    Ebpf(place).probe(BASE, (4, 6))
                namespace.close()
            subprocess.run(
                ["bpftool", "cgroup", "detach", cgroup.path, "connect4", "pinned", pin], check=True
            )
    finally:
        os.unlink(pin)
        os.rmdir(child)
        cgroup.close()


# -- what dies without us --------------------------------------------------------------------------


def sandbox() -> tuple[Cgroup, Namespace, Ebpf]:
    """Make a redirected sandbox."""
    cgroup, namespace = Cgroup(), Namespace()
    backend = Ebpf(placement(cgroup))
    with entered(namespace.path):
        backend.add(EVERYTHING, (4, 6))
    return cgroup, namespace, backend


def test_a_netns_that_is_gone_is_forgotten_by_its_cookie() -> None:
    """A DEL after the netns went leaves its policy, and the cgroup's links, until the machine restarts."""
    cgroup, namespace, backend = sandbox()
    before = pinned()
    with entered(namespace.path):
        gone = cookie()
    namespace.close()
    backend.forget(gone)
    backend.forget(gone)
    assert f"/{gone}" not in " ".join(pinned())
    assert len(pinned()) < len(before)
    assert attached(cgroup.path) == []
    cgroup.close()


def test_gc_finds_what_nobody_remembers() -> None:
    """Names of the dead fill the bpffs: of a netns, a cgroup, and an ADD that was killed."""
    cgroup, namespace, backend = sandbox()
    with entered(namespace.path):
        gone = cookie()
    namespace.close()
    Draft(f"{backend._pins.top}/sandboxes/4711")
    cgroup.close()
    # The kernel takes a netns down some time after its last process.
    for _ in range(500):
        backend.gc()
        left = " ".join(pinned())
        if f"/{gone}" not in left:
            break
        time.sleep(0.01)
    assert f"/{gone}" not in left
    assert Draft.MARK not in left
    assert not [line for line in pinned() if "/cgroups/" in line]


def test_gc_leaves_the_living_alone(pod: Pod) -> None:
    """GC takes away the redirection of a running pod."""
    pod.add("ebpf", EVERYTHING)
    pod.backend("ebpf").gc()
    assert check(pod, EVERYTHING) == []
    assert pod.dial("10.1.2.3", 80, **APP).port == OUTBOUND


def test_facts_of_a_killed_add_are_replaced(pod: Pod) -> None:
    """An ADD was killed before its commit, and the next one takes its leftovers for its own."""
    backend = pod.backend("ebpf")
    backend._pins.load()
    killed = BASE.replace(exclude_outbound_ports=((80, 80),))
    with entered(pod.path), backend._maps() as maps:
        wanted = policy.policy(killed, (4, 6), cookie(), 1, policy.GENERATIONS[0])
        maps.write_facts(wanted, policy.facts(killed, network.read(), lambda kind, ids: ids))
    pod.add("ebpf", BASE)
    assert check(pod, BASE) == []
    assert pod.dial("10.1.2.3", 80, **APP).port == OUTBOUND


def test_an_upgrade_moves_every_link_under_traffic(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """A newer build's first ADD on a node breaks the connections of the pods that are there, or leaves them its elder's programs."""
    pod.add("ebpf", EVERYTHING)
    before = attached(pod.cgroup.path)
    newer = shutil.copytree(pins.OBJECTS, f"{tmp_path}/newer")
    with open(f"{newer}/digest", "w", encoding="ascii") as file:
        file.write("newer\n")
    monkeypatch.setattr(pins, "OBJECTS", newer)
    old, other = pod.hold("10.1.2.3", 80, **APP), Namespace()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pod.outside.dial_all, [Dial(to="10.50.0.2", port=80)] * 300)
        with entered(other.path):
            Ebpf(placement(pod.cgroup)).probe(BASE, (4, 6))
        arrived = running.result()
    other.close()
    after = attached(pod.cgroup.path)
    assert {(seen.result, seen.port) for seen in arrived} == {("connected", INBOUND)}
    assert pod.echo(old) == "alive"
    assert len(after) == len(before)
    assert not set(after) & set(before)
    assert check(pod, EVERYTHING) == []
    assert pod.dial("10.1.2.3", 80, **APP).original == ("10.1.2.3", 80)
    assert [name for name in os.listdir(f"{bpffs()}/mesh-redirect/1") if "programs" in name] == [
        "programs-newer"
    ]
