"""A throw-away Kubernetes node without Kubernetes: one netns, the CNI directories, pods, and cnitool.

Not a fake of the runtime: cnitool is libcni, the code containerd runs its chains with. The machine's own
netns, /var/lib/cni, /etc/cni and /opt/cni are never touched.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import IO, Any, Self

from install import launcher
from tests.lab.ground import Cgroup, bpffs

ROOT = launcher.ROOT
TOOLS = os.path.join(ROOT, ".tools", "bin")
PYTHON = os.path.realpath(sys.executable)
PROXY = 1337
APP = 1000
# cnitool keeps libcni's cache in /var/lib/cni; this gives every call a /var/lib of our own.
OWN_VAR_LIB = 'mount --bind "$0" /var/lib && exec nsenter --net="$1" "${@:2}"'
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

_serial = count()

with open(os.path.join(os.path.dirname(__file__), "talk.py"), encoding="utf-8") as _file:
    TALK = _file.read()


def run(*command: str, **options: Any) -> str:
    """Run `command` and return what it printed; its stderr is in the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def until(ready: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Poll until `ready()` is true and return that; fail naming `what` when it does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := ready():
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class Netns:
    """A network namespace with a name, loopback up, and the processes we started in it."""

    def __init__(self, role: str, pods: str = "") -> None:
        number = next(_serial)
        self.name = f"mr-{os.getpid()}-{number}-{role}"
        # As the kubelet does, before the runtime is asked for a sandbox; `pods` is where.
        self.args = f"IgnoreUnknown=1;K8S_POD_UID={number:08d}-0000" if pods else ""
        self._cgroup = f"{pods}/pod{number:08d}-0000" if pods else ""
        if pods:
            os.mkdir(self._cgroup)
        self.path = f"/run/netns/{self.name}"
        self._processes: list[subprocess.Popen[str]] = []
        run("ip", "netns", "add", self.name)
        # Addresses are usable at once: nobody else is on these links.
        self.run("sh", "-c", "echo 0 | tee /proc/sys/net/ipv6/conf/*/accept_dad")
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def inside(self, *command: str, uid: int = 0, capabilities: str = "") -> list[str]:
        """Return `command` as it has to be started to run in here, as `uid` (and the gid of the same number)."""
        line = ["nsenter", f"--net={self.path}"]
        if self._cgroup:
            line = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{self._cgroup}/cgroup.procs", *line]
        if uid:
            line += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        if capabilities:
            line += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
        return [*line, *command]

    def run(self, *command: str, uid: int = 0) -> str:
        """Run `command` in here and return what it printed."""
        return run(*self.inside(*command, uid=uid))

    def start(
        self, *command: str, uid: int = 0, capabilities: str = "", output: IO[str] | int = subprocess.PIPE
    ) -> "subprocess.Popen[str]":
        """Start `command` in here; it is ended with the namespace, or by `stop`."""
        line = self.inside(*command, uid=uid, capabilities=capabilities)
        # Every program in `line` replaces itself with the next, so the pid is the last one's.
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        self._processes.append(process)
        return process

    def stop(self, process: "subprocess.Popen[str]") -> None:
        """End one process and wait for its end."""
        self._processes.remove(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()

    def serve(self, name: str, port: int) -> "subprocess.Popen[str]":
        """Start an application that says it is `name`, on `port` of both families; it listens on return."""
        process = self.start(PYTHON, "-ISc", TALK, "serve", name, str(port), uid=APP)
        assert process.stdout
        line = process.stdout.readline()
        assert "serving" in line, line + process.stdout.read()
        return process

    def call(self, address: str, port: int, *, uid: int = APP, timeout: float = 5) -> dict[str, Any]:
        """Ask `address` from in here as `uid`; what became of it is `outcome` of the answer."""
        answer = self.run(PYTHON, "-ISc", TALK, "call", address, str(port), str(timeout), uid=uid)
        told: dict[str, Any] = json.loads(answer)
        return told

    def listening(self, port: int) -> bool:
        """Say whether some process in here listens on TCP `port`, as ss sees it."""
        return f":{port} " in self.run("ss", "-Hltn")

    def addresses(self, interface: str = "eth0") -> dict[int, str]:
        """Return the global address of `interface` by family, as ip sees it."""
        links = json.loads(run("ip", "-j", "-n", self.name, "addr", "show", "dev", interface))
        known = {"inet": 4, "inet6": 6}
        return {known[a["family"]]: a["local"] for a in links[0]["addr_info"] if a["scope"] == "global"}

    def close(self) -> None:
        """End every process of ours in here, then the namespace."""
        for process in list(self._processes):
            self.stop(process)
        run("ip", "netns", "del", self.name)
        if self._cgroup:
            os.rmdir(self._cgroup)


class Node:
    """A node: `pod()` makes sandboxes, `network()` writes a conflist, the verbs run it."""

    def __init__(self, directory: str) -> None:
        # World-readable: proxies and applications are other users.
        os.chmod(directory, 0o755)
        self.directory = directory
        self.bin = self._made("bin")
        self.state = self._made("state")
        self.net_d = self._made("net.d")
        self._var_lib = self._made("var-lib")
        for tool in os.listdir(TOOLS):
            os.symlink(os.path.join(TOOLS, tool), os.path.join(self.bin, tool))
        launcher.write(self.bin)
        self.netns = Netns("node")
        self._cgroup = Cgroup()
        self._kubepods = f"{self._cgroup.path}/kubepods"
        os.mkdir(self._kubepods)
        self._pods: list[Netns] = []

    def _made(self, name: str) -> str:
        path = os.path.join(self.directory, name)
        os.mkdir(path)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods:
            pod.close()
        self.netns.close()
        os.rmdir(self._kubepods)
        self._cgroup.close()

    def pod(self, role: str) -> Netns:
        """Make an empty sandbox, as a runtime does before it calls the chain."""
        self._pods.append(Netns(role, self._kubepods))
        return self._pods[-1]

    def forget(self, pod: Netns) -> None:
        """Remove the sandbox before its time."""
        self._pods.remove(pod)
        pod.close()

    def network(self, name: str, *plugins: dict[str, Any], version: str = "1.1.0") -> str:
        """Write the conflist of these plugins and return the network's name."""
        text = json.dumps({"cniVersion": version, "name": name, "plugins": plugins}, indent=2)
        with open(os.path.join(self.net_d, f"{name}.conflist"), "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def plugin(self, name: str, text: str) -> None:
        """Add a plugin of the test's own to CNI_PATH: Python source after its shebang."""
        path = os.path.join(self.bin, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!{PYTHON} -IS\n{text}")
        os.chmod(path, 0o755)

    def first(
        self, kind: str = "bridge", octet: int = 88, families: tuple[int, ...] = (4, 6)
    ) -> dict[str, Any]:
        """Return the netconf of the plugin that makes the interface: `bridge` or `ptp`, with host-local."""
        ranges = {4: [{"subnet": f"10.{octet}.0.0/24"}], 6: [{"subnet": f"fd00:{octet}::/64"}]}
        routes = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}
        ipam = {
            "type": "host-local",
            "dataDir": os.path.join(self.directory, "ipam"),
            "ranges": [ranges[family] for family in families],
            "routes": [routes[family] for family in families],
        }
        own = {"bridge": f"br{octet}", "isGateway": True} if kind == "bridge" else {}
        return {"type": kind, "ipam": ipam, **own}

    def ours(self, **netconf: Any) -> dict[str, Any]:
        """Return the netconf of the plugin under test, its state inside this node."""
        return {
            "type": launcher.NAME,
            "stateDir": self.state,
            "bpffs": bpffs(),
            "cgroupRoot": self._cgroup.path,
            "agent": "never",
            "capabilities": {ANNOTATIONS: True},
            **netconf,
        }

    def cnitool(
        self,
        verb: str,
        network: str,
        pod: Netns,
        *,
        args: str = "",
        capabilities: dict[str, Any] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run one verb as the node's runtime would, and return how it ended."""
        line = ["unshare", "--mount", "bash", "-c", OWN_VAR_LIB, self._var_lib, self.netns.path]
        return subprocess.run(
            [*line, os.path.join(self.bin, "cnitool"), verb, network, pod.path],
            env={
                "PATH": os.environ["PATH"],
                "NETCONFPATH": self.net_d,
                "CNI_PATH": self.bin,
                "CNI_ARGS": args,
                "CAP_ARGS": json.dumps(capabilities or {}),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def attachments(self) -> list[str]:
        """Return the names of the attachment records this node holds."""
        try:
            return sorted(os.listdir(os.path.join(self.state, "attachments")))
        except FileNotFoundError:
            return []
