"""`make bench`: what one call of the plugin costs, as a ratio to a bare Python, in one interleaved run.

Not a test: nothing fails here. Every figure is of whole processes, from spawn to exit, started as a runtime
starts them; `floor` is `python3 -I -S -c pass` of the same interpreter, taken in the same rounds.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

from tabulate import tabulate

from install import launcher
from tests.lab.ground import Cgroup, bpffs
from tests.runtime.node import ANNOTATIONS, PYTHON, Netns

ROUNDS = int(os.environ.get("ROUNDS", "100"))
AT_ONCE = 16
BACKENDS = ("nftables", "iptables", "ebpf")
MESHED = {"sidecar.istio.io/status": '{"containers": ["istio-proxy"]}'}
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
    "ips": [{"address": "10.88.0.2/24", "interface": 0}, {"address": "fd00:88::2/64", "interface": 0}],
}
DEVNULL = os.open(os.devnull, os.O_WRONLY)


class Plugin:
    """The launcher, its state, and its netconf for one backend; every call is one timed process."""

    def __init__(self, directory: str) -> None:
        self._program = launcher.write(directory)
        self._state = os.path.join(directory, "state")
        # A pod's own, as under a kubelet: its links are made by each ADD, and not found there.
        self.cgroup = Cgroup()

    def _stdin(self, backend: str, *, meshed: bool) -> bytes:
        netconf: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": launcher.NAME,
            "mesh": "istio",
            "backends": [backend],
            "agent": "never",
            "stateDir": self._state,
            "bpffs": bpffs(),
            "cgroup": self.cgroup.path,
            # The whole set: both families, inbound, outbound, DNS by UDP and TCP in zones of its own.
            "redirection": {"dns": "all"},
            "runtimeConfig": {ANNOTATIONS: MESHED if meshed else {}},
            "prevResult": RESULT,
        }
        return json.dumps(netconf).encode()

    def start(self, verb: str, pod: Netns, backend: str = "nftables", *, meshed: bool = True) -> int:
        """Start one call and return its pid."""
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": os.path.dirname(self._program),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={pod.name}",
        }
        read, write = os.pipe()
        os.write(write, self._stdin(backend, meshed=meshed))
        os.close(write)
        pid = spawn([self._program], environment, read)
        os.close(read)
        return pid

    def call(self, verb: str, pod: Netns, backend: str = "nftables", *, meshed: bool = True) -> float:
        """Return how long one call took, in milliseconds."""
        began = time.perf_counter()
        return ended(self.start(verb, pod, backend, meshed=meshed), began)


def spawn(command: list[str], environment: dict[str, str], stdin: int) -> int:
    """Start a process whose output nobody reads."""
    actions = [(os.POSIX_SPAWN_DUP2, *ends) for ends in ((stdin, 0), (DEVNULL, 1), (DEVNULL, 2))]
    return os.posix_spawn(command[0], command, environment, file_actions=actions)


def ended(pid: int, began: float) -> float:
    """Wait for the process; return the milliseconds since `began`. A failed call makes no figure."""
    _, status = os.waitpid(pid, 0)
    took = (time.perf_counter() - began) * 1000
    if status:
        raise SystemExit(f"a call failed with status {status}: the figures would mean nothing")
    return took


def floor() -> float:
    """Return how long a bare interpreter took, in milliseconds."""
    began = time.perf_counter()
    return ended(spawn([PYTHON, "-I", "-S", "-c", "pass"], dict(os.environ), 0), began)


def one_round(plugin: Plugin, figures: dict[str, list[float]]) -> None:
    """Take every figure once, each ADD in a namespace nothing was ever done to."""
    figures["floor"].append(floor())
    pod = Netns("bench")
    figures["ADD, unmeshed"].append(plugin.call("ADD", pod, meshed=False))
    plugin.call("DEL", pod, meshed=False)
    pod.close()
    for backend in BACKENDS:
        figures["floor"].append(floor())
        pod = Netns("bench")
        for verb in ("ADD", "CHECK", "DEL"):
            figures[f"{verb}, meshed, {backend}"].append(plugin.call(verb, pod, backend))
        pod.close()


def at_once(plugin: Plugin) -> list[float]:
    """Return how long each of AT_ONCE meshed ADDs took that were started together."""
    pods = [Netns("bench") for _ in range(AT_ONCE)]
    began = time.perf_counter()
    left = {plugin.start("ADD", pod) for pod in pods}
    took = []
    while left:
        pid, status = os.wait()
        left.remove(pid)
        took.append((time.perf_counter() - began) * 1000)
        if status:
            raise SystemExit(f"an ADD of {AT_ONCE} failed with status {status}")
    for pod in pods:
        plugin.call("DEL", pod)
        pod.close()
    return took


def p99(values: list[float]) -> float:
    """Return the 99th percentile: the slowest of a hundred."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def report(figures: dict[str, list[float]]) -> str:
    """Return the table: each figure as a ratio to the floor, beside its budget."""
    base = statistics.median(figures["floor"])
    many = f"{AT_ONCE} ADDs at once, nftables"
    limits: dict[str, float] = {
        "ADD, unmeshed": 1.4,
        "ADD, meshed, nftables": 1.6,
        "ADD, meshed, iptables": 3,
        "ADD, meshed, ebpf": 2.2,
        many: 9,
    }
    for backend in BACKENDS:
        add = statistics.median(figures[f"ADD, meshed, {backend}"]) / base
        limits[f"CHECK, meshed, {backend}"] = limits[f"DEL, meshed, {backend}"] = add

    def line(name: str, milliseconds: float, limit: float | None) -> list[Any]:
        ratio = milliseconds / base
        verdict = "" if limit is None else "within" if ratio <= limit else "OVER"
        return [name, f"{milliseconds:.1f}", f"{ratio:.2f}", "" if limit is None else f"{limit:.2f}", verdict]

    rows = [line(f"{name}, p50", statistics.median(took), limits.get(name)) for name, took in figures.items()]
    rows.append(line("ADD, meshed, nftables, p99", p99(figures["ADD, meshed, nftables"]), 4))
    return tabulate(
        rows,
        ("figure", "ms", "× floor", "budget", "verdict"),
        tablefmt="rounded_outline",
        disable_numparse=True,
    )


def main() -> int:
    """Take ROUNDS rounds (environment, default 100) and print the table."""
    figures: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mesh-redirect-bench-") as directory:
        plugin = Plugin(directory)
        one_round(plugin, defaultdict(list))  # compiles the modules, warms the caches
        for _ in range(ROUNDS):
            one_round(plugin, figures)
        for _ in range(max(1, ROUNDS // 20)):
            figures[f"{AT_ONCE} ADDs at once, nftables"] += at_once(plugin)
        plugin.cgroup.close()
    print(f"{ROUNDS} rounds, interleaved; Python {sys.version.split()[0]}, {os.cpu_count()} CPUs")
    print(report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
