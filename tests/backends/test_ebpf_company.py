"""The eBPF backend beside others: another's programs on a cgroup above, conntrack, and what breaks around it.

Not its own life: test_ebpf.py has that. Long because each kind of company takes some building.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cni_plugin.backends import pins
from cni_plugin.backends.common import Placement
from cni_plugin.backends.ebpf import Ebpf
from cni_plugin.kernel import bpf, libbpf
from cni_plugin.kernel.netns import entered
from tests.backends.test_ebpf import APP, EVERYTHING, attached, bpftool, kept
from tests.lab import topology
from tests.lab.ground import PREFIX, Cgroup, bpffs, placement
from tests.lab.namespace import Namespace
from tests.lab.need import need
from tests.lab.topology import INBOUND, OUTBOUND, Pod


@pytest.fixture(autouse=True)
def _needed() -> None:
    need("ebpf")


# -- another's programs above ----------------------------------------------------------------------

# As a node's socket load balancer does: a service's address becomes a backend's, 10.1.2.3:80 is 10.2.2.3:8080.
THEIRS = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64); }
seen SEC(".maps");
SEC("cgroup/connect4") int balance(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0, to = ctx->user_ip4, port = ctx->user_port;
	__u64 value = (__u64)bpf_ntohl(to) << 16 | bpf_ntohs(port);

	bpf_map_update_elem(&seen, &zero, &value, BPF_ANY);
	if (value == (0x0a010203ULL << 16 | 80)) {
		ctx->user_ip4 = bpf_htonl(0x0a020203);
		ctx->user_port = bpf_htons(8080);
	}
	return 1;
}
SEC("cgroup/getsockopt") int answer(struct bpf_sockopt *ctx)
{
	__u8 *value = ctx->optval;

	if ((void *)(value + 1) > ctx->optval_end || ctx->level != 0 || ctx->optname != 119)
		return 1;
	*value = 42;
	ctx->optlen = 1;
	asm volatile("" ::: "memory");
	ctx->retval = 0;
	return 1;
}
char LICENSE[] SEC("license") = "GPL";
"""
HOOKS = {"balance": "connect4", "answer": "getsockopt"}
ASK = "import socket; print(socket.socket().getsockopt(0, 119, 8)[0])"


class Inner(Cgroup):
    """A cgroup in one of its own: what is attached above it is above nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.above = self.path
        self.path = f"{self.above}/pod"
        os.mkdir(self.path)

    def close(self) -> None:
        """Remove both."""
        os.rmdir(self.path)
        os.rmdir(self.above)


class Theirs:
    """Programs of somebody else's on the cgroup above the pod's."""

    def __init__(self, above: str, directory: str) -> None:
        self.above, self.pins = above, f"{bpffs()}/theirs"
        source, built = f"{directory}/theirs.c", f"{directory}/theirs.o"
        with open(source, "w", encoding="utf-8") as file:
            file.write(THEIRS)
        headers = f"/usr/include/{os.uname().machine}-linux-gnu"
        clang = ["clang", "-O2", "-g", "-target", "bpf", "-idirafter", headers, "-c", source, "-o", built]
        subprocess.run(clang, check=True)
        os.mkdir(self.pins)
        load = ["bpftool", "prog", "loadall", built, self.pins, "pinmaps", self.pins]
        subprocess.run(load, check=True)

    def attach(self) -> None:
        """Attach them, as one who allows others."""
        for name, hook in HOOKS.items():
            subprocess.run([*self._cgroup("attach", name, hook), "multi"], check=True)

    def detach(self) -> None:
        """Detach what is attached."""
        for name, hook in HOOKS.items():
            subprocess.run(self._cgroup("detach", name, hook), check=False, stderr=subprocess.DEVNULL)

    def _cgroup(self, verb: str, name: str, hook: str) -> list[str]:
        return ["bpftool", "cgroup", verb, self.above, hook, "pinned", f"{self.pins}/{name}"]

    def saw(self) -> tuple[str, int]:
        """Return the destination that their program was given last."""
        found = bpf.Map(bpf.pinned(f"{self.pins}/seen"), 4, 8)
        try:
            value = int.from_bytes(found.get(bytes(4)) or b"", "little")
        finally:
            os.close(found.fd)
        return ".".join(str(byte) for byte in (value >> 16).to_bytes(4, "big")), value & 0xFFFF

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        for name in os.listdir(self.pins):
            os.unlink(f"{self.pins}/{name}")
        os.rmdir(self.pins)


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[tuple[Pod, Theirs]]:
    """Give a pod below a cgroup that has programs of somebody else's, not attached yet."""
    monkeypatch.setattr(topology, "Cgroup", Inner)
    pod = Pod()
    assert isinstance(pod.cgroup, Inner)
    try:
        theirs = Theirs(pod.cgroup.above, str(tmp_path))
        yield pod, theirs
        pod.clear()
        theirs.close()
    finally:
        pod.close()


def their_option(pod: Pod) -> str:
    """Ask in the pod for an option that only their program knows."""
    enter = f'echo $$ > {pod.cgroup.path}/cgroup.procs; exec nsenter --net={pod.path} "$@"'
    command = ["sh", "-c", enter, "sh", sys.executable, "-IS", "-c", ASK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_anothers_programs_above_run_after_ours(company: tuple[Pod, Theirs], first: str) -> None:
    """Whoever came first: a load balancer on the node no longer runs, or the proxy is told a backend's address for a service's."""
    pod, theirs = company
    excluding = EVERYTHING.replace(exclude_outbound_ports=((9090, 9090),))
    if first == "theirs":
        theirs.attach()
    pod.add("ebpf", excluding)
    if first == "ours":
        theirs.attach()
    seen = pod.dial("10.1.2.3", 80, **APP)
    assert (seen.port, seen.original) == (OUTBOUND, ("10.1.2.3", 80))
    assert theirs.saw() == ("127.0.0.1", OUTBOUND)
    assert their_option(pod) == "42"
    # What passes ours is theirs alone.
    assert pod.dial("10.1.2.3", 9090, **APP).at == ("10.1.2.3", 9090)
    assert theirs.saw() == ("10.1.2.3", 9090)
    pod.add("ebpf", EVERYTHING.replace(exclude_outbound_ports=((80, 80),)))
    assert pod.dial("10.1.2.3", 80, **APP).at == ("10.2.2.3", 8080)


def test_each_goes_without_the_other(company: tuple[Pod, Theirs]) -> None:
    """Our DEL takes a node's load balancer with it, or its upgrade takes our redirection."""
    pod, theirs = company
    theirs.attach()
    pod.add("ebpf", EVERYTHING)
    pod.clear("ebpf")
    assert attached(pod.cgroup.path) == []
    assert pod.dial("10.1.2.3", 80, **APP).at == ("10.2.2.3", 8080)
    assert their_option(pod) == "42"
    pod.add("ebpf", EVERYTHING)
    theirs.detach()
    assert pod.dial("10.1.2.3", 80, **APP).original == ("10.1.2.3", 80)
    assert their_option(pod) == ""
    with entered(pod.path):
        assert pod.backend("ebpf").check(EVERYTHING, (4, 6)) == []


# -- conntrack and rules ---------------------------------------------------------------------------


def flows(pod: Pod) -> int:
    """Return how many connections the pod's netns tracks."""
    return int(pod.namespace.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def test_nothing_is_tracked_and_no_rule_is_there() -> None:
    """Every connection of the pod costs an entry in the node's conntrack table, as with packet rules."""
    pod = Pod()
    try:
        for backend, tracked in (("ebpf", False), ("nftables", True)):
            pod.program(backend, EVERYTHING)
            for to in ("10.1.2.3", "2001:db8:1::3"):
                assert pod.hold(to, 80, **APP).port == OUTBOUND
            for to in ("10.50.0.2", "fd00:50::2"):
                assert pod.outside.hold(to, 80).port == INBOUND
            assert (flows(pod) > 0) == tracked
            if not tracked:
                assert pod.namespace.run("nft", "list", "ruleset") == ""
                for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
                    assert pod.namespace.run(tool) == ""
    finally:
        pod.clear()
        pod.close()


# -- leaks -----------------------------------------------------------------------------------------


def ours() -> tuple[int, int, int]:
    """Count the programs on this run's maps, their links, and all of their maps."""
    node = f"{bpffs()}/mesh-redirect/{pins.LAYOUT}/maps"
    maps = {bpftool("map", "show", "pinned", f"{node}/{name}")["id"] for name in os.listdir(node)}
    programs = [found for found in bpftool("prog", "show") if maps & set(found.get("map_ids", ()))]
    ids = {found["id"] for found in programs}
    links = [found for found in bpftool("link", "show") if found.get("prog_id") in ids]
    return len(ids), len(links), len(maps.union(*(found["map_ids"] for found in programs)))


def test_a_thousand_pods_leave_nothing() -> None:
    """A node keeps a program, a map, a link, a pin or a descriptor of every pod it ever had."""
    cgroup, namespace = Cgroup(), Namespace()
    backend = Ebpf(placement(cgroup))
    with entered(namespace.path):
        backend.add(EVERYTHING, (4, 6))
        backend.delete(EVERYTHING)
        before, kept_before = ours(), kept()
        for _ in range(1000):
            backend.add(EVERYTHING, (4, 6))
            backend.delete(EVERYTHING)
    namespace.close()
    # The kernel frees what nobody holds some time later.
    for _ in range(500):
        if ours() == before:
            break
        time.sleep(0.01)
    assert ours() == before
    assert kept() == kept_before
    assert attached(cgroup.path) == []
    cgroup.close()


# -- what breaks around it -------------------------------------------------------------------------


class Node:
    """A bpffs, a cgroup and a netns of a test's own, and the backend there."""

    def __init__(self) -> None:
        self.bpffs = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        self.cgroup, self.namespace = Cgroup(), Namespace()
        self.namespace.run("ip", "link", "set", "lo", "up")
        self.backend = Ebpf(Placement(bpffs=self.bpffs, cgroup=self.cgroup.path))
        self.mount()

    def mount(self) -> None:
        """Mount a new, empty bpffs."""
        subprocess.run(["mount", "-t", "bpf", "bpf", self.bpffs], check=True)

    def unmount(self) -> None:
        """Take it away, with all that it keeps alive."""
        subprocess.run(["umount", "--lazy", self.bpffs], check=True)

    def add(self) -> None:
        """Probe and add, as the verb does."""
        with entered(self.namespace.path):
            self.backend.probe(EVERYTHING, (4, 6))
            self.backend.add(EVERYTHING, (4, 6))

    def check(self) -> list[str]:
        """Return what CHECK finds."""
        with entered(self.namespace.path):
            return self.backend.check(EVERYTHING, (4, 6))

    def delete(self) -> None:
        """Delete, twice: a runtime may."""
        for _ in range(2):
            with entered(self.namespace.path):
                self.backend.delete(EVERYTHING)

    def left(self) -> list[object]:
        """Return what is there of sandboxes, cgroups and drafts: pins, elements, programs that run."""
        top = f"{self.bpffs}/mesh-redirect/{pins.LAYOUT}"
        found: list[object] = [name for name, _, _ in os.walk(top) if pins.Draft.MARK in name]
        for kind in ("cgroups", "sandboxes"):
            found += os.listdir(f"{top}/{kind}") if os.path.isdir(f"{top}/{kind}") else []
        for name, key_size in (("policies", 8), ("facts", 32), ("ports", 16), ("listeners", 16)):
            if os.path.exists(f"{top}/maps/{name}"):
                opened = bpf.Map(bpf.pinned(f"{top}/maps/{name}"), key_size, 0)
                found += opened.walk()
                os.close(opened.fd)
        return found + attached(self.cgroup.path)

    def close(self) -> None:
        """End it all."""
        self.namespace.close()
        self.unmount()
        os.rmdir(self.bpffs)
        if os.path.isdir(self.cgroup.path):
            self.cgroup.close()


@pytest.fixture
def node() -> Iterator[Node]:
    """Give a node of the test's own."""
    made = Node()
    yield made
    made.close()


def test_a_bpffs_unmounted_before_del(node: Node) -> None:
    """A DEL fails for ever when somebody has unmounted the bpffs, and the pod is never gone."""
    node.add()
    node.unmount()
    assert node.check()[0] == "the node's programs are missing"
    node.delete()
    node.backend.gc()
    for _ in range(500):  # the kernel detaches what lost its pins some time later
        if not attached(node.cgroup.path):
            break
        time.sleep(0.01)
    assert attached(node.cgroup.path) == []
    node.mount()
    node.add()
    assert node.check() == []
    node.delete()
    assert node.left() == []


def test_another_layout_is_left_alone(node: Node) -> None:
    """An upgrade across layouts takes the programs of running pods away, or is kept from working by them."""
    older = f"{node.bpffs}/mesh-redirect/0"
    for name in ("maps", "cgroups/1", "sandboxes/1", "draft-1-programs"):
        os.makedirs(f"{older}/{name}")
    subprocess.run(
        [
            "bpftool",
            "map",
            "create",
            f"{older}/maps/policies",
            "name",
            "policies",
            *["type", "hash", "key", "8", "value", "4", "entries", "1"],
        ],
        check=True,
    )
    before = sorted(os.walk(older))
    node.add()
    assert node.check() == []
    node.backend.gc()
    assert node.check() == []
    node.delete()
    node.backend.gc()
    assert node.left() == []
    assert sorted(os.walk(older)) == before


def test_a_cgroup_that_is_gone_before_del(node: Node) -> None:
    """A DEL after the pod's cgroup went fails, or leaves its links' pins for good."""
    node.add()
    node.cgroup.close()
    os.mkdir(node.cgroup.path)
    node.delete()
    assert node.left() == []


def killed_at(step: int, do: Callable[[], object]) -> bool:
    """Do it in a child that is killed after `step` steps, each a call to libbpf or to the filesystem; False: it had fewer."""
    child = os.fork()
    if not child:
        left = [step]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                result = real(*arguments, **named)
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for module, name in (
            (bpf, "done"),
            (libbpf, "done"),
            (os, "mkdir"),
            (os, "rename"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            setattr(module, name, counted(getattr(module, name)))
        try:
            do()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("verb", ["first add", "add", "delete"])
def test_killed_between_any_two_steps(node: Node, verb: str) -> None:
    """What a killed verb left keeps a pod from being added, or stays on the node after DEL and GC."""
    step, stride = 0, 3 if verb == "first add" else 1
    while True:
        if verb == "delete":
            node.add()
        elif verb == "first add":
            node.unmount()
            node.mount()
        else:
            node.backend._pins.load()
        killed = killed_at(step, node.delete if verb == "delete" else node.add)
        if step % 2:
            # The runtime tries again.
            node.add()
            assert node.check() == [], step
        node.delete()
        node.backend.gc()
        assert node.left() == [], step
        if not killed:
            break
        step += stride
    assert step > 15
