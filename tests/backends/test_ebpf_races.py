"""The eBPF backend under many connections at once, while it is added, replaced and removed.

Not one connection's meaning: tests/contract has that.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import pytest

from cni_plugin.backends.ebpf import Ebpf
from cni_plugin.kernel.netns import entered
from tests.backends.test_ebpf import EVERYTHING
from tests.lab.ground import placement
from tests.lab.namespace import Namespace
from tests.lab.need import need
from tests.lab.topology import OUTBOUND, Pod

CROWD = Path(__file__).with_name("crowd.py")


@pytest.fixture
def pod() -> Iterator[Pod]:
    """Give a pod of the test's own."""
    need("ebpf")
    made = Pod()
    yield made
    made.clear()
    made.close()


class Crowd:
    """A process of crowd.py in the pod's cgroup and netns; killed when the block ends."""

    def __init__(self, pod: Pod, *words: str) -> None:
        # The shell joins first: a socket belongs to the cgroup it was made in.
        join = f'echo $$ > {pod.cgroup.path}/cgroup.procs; exec nsenter --net={pod.path} "$@"'
        command = ["sh", "-c", join, "sh", sys.executable, "-IS", str(CROWD), *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            stream_closed(stream)

    def wait_until_ready(self) -> None:
        """Return when it has begun."""
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> object:
        """Have it end, and return what it tells."""
        told, _ = self.process.communicate()
        return json.loads(told)


def stream_closed(stream: IO[str] | None) -> None:
    """Close a pipe that may be closed."""
    if stream and not stream.closed:
        stream.close()


Story = tuple[float, float, str]
Span = tuple[float, float]


def surge(pod: Pod, turns: int) -> tuple[list[Story], list[Span], list[Span]]:
    """Add, replace and remove under 64 threads: return their stories, and when a redirection was there and was not."""
    wanted = [EVERYTHING.replace(exclude_outbound_ports=((port, port),)) for port in (53, 8085)]
    there, away = [], []
    with Crowd(pod, "surge") as crowd:
        crowd.wait_until_ready()
        for turn in range(turns):
            gone = time.monotonic()
            time.sleep(0.02)
            away.append((gone, time.monotonic()))
            pod.add("ebpf", wanted[turn % 2])
            begun = time.monotonic()
            for other in (1, 0, 1):
                time.sleep(0.02)
                pod.add("ebpf", wanted[other])
            there.append((begun, time.monotonic()))
            pod.clear("ebpf")
        stories = crowd.end()
    assert isinstance(stories, list)
    assert len(stories) > 1000
    return stories, there, away


def within(stories: list[Story], kind: str, spans: list[Span]) -> list[Story]:
    """Return those of a kind that began and ended in one of the spans."""
    return [
        (begun, ended, told)
        for begun, ended, told in stories
        if told == kind and any(first < begun and ended < last for first, last in spans)
    ]


def test_64_threads_while_it_is_added_replaced_and_removed(pod: Pod) -> None:
    """A connection bypasses the proxy under a redirection, is redirected without one, learns another's destination, or hangs."""
    neighbour = Namespace()
    backend = Ebpf(placement(pod.cgroup))
    with entered(neighbour.path):
        backend.add(EVERYTHING, (4, 6))
    try:
        stories, there, away = surge(pod, 24)
    finally:
        with entered(neighbour.path):
            backend.delete(EVERYTHING)
        neighbour.close()
    assert {told for _, _, told in stories} == {"proxy", "straight"}
    assert within(stories, "straight", there) == []
    assert within(stories, "proxy", away) == []


def test_64_threads_while_a_cgroups_last_sandbox_goes(pod: Pod) -> None:
    """What is under way while the programs are detached learns another's destination: no more is lost than its own."""
    stories, there, away = surge(pod, 24)
    assert {told for _, _, told in stories} <= {"proxy", "straight", "unknown"}
    for kind, never in (("straight", there), ("unknown", there), ("proxy", away)):
        assert within(stories, kind, never) == [], kind


def test_20000_short_connections_learn_their_own_destination(pod: Pod) -> None:
    """Of clients that share source ports, half-close, or are gone before they are accepted, one gets another's destination."""
    pod.unlisten(OUTBOUND)
    # Ports are used again at once, not after a minute.
    pod.namespace.ask("sysctl", values={"net/ipv4/tcp_max_tw_buckets": "64"})
    pod.add("ebpf", EVERYTHING)
    with Crowd(pod, "serve") as proxy:
        proxy.wait_until_ready()
        with Crowd(pod, "dial", "20000") as clients:
            failed = clients.end()
        tally = proxy.end()
    assert isinstance(tally, dict)
    assert tally["wrong"] == []
    assert failed == []
    # A reset may overtake what the client said; one of sixteen leaves by one at once, of IPv6 two.
    assert tally["right"] >= 20000 * 7 // 8
    assert tally["right"] + tally["unheard"] == 20000
