"""The demo's stage: two pods behind the real chain, who calls whom, and what has to come of it.

Not the narrator: `demo` prints. Observations come from Envoy's access log, the sockets, nft and iptables.
"""

import glob
import json
import os
import shlex
from typing import Any, NamedTuple

from tests.lab.ground import bpffs
from tests.runtime.envoy import OUTBOUND, Envoy
from tests.runtime.node import ANNOTATIONS, APP, PROXY, Netns, Node, run

# Layout 1 of what the eBPF backend pins (cni_plugin/backends/pins.py).
PINS = "{bpffs}/mesh-redirect/1"
PORT = 8080
EXCLUDED = 9090
HOST_PORT = 18080
MESHED = {
    "sidecar.istio.io/status": json.dumps({"containers": ["istio-proxy"], "initContainers": []}),
    "traffic.sidecar.istio.io/excludeInboundPorts": str(EXCLUDED),
    "traffic.sidecar.istio.io/excludeOutboundPorts": str(EXCLUDED),
}


class Wrong(Exception):  # it is the demo that is wrong, not an error of ours
    """Something was not as the demo says."""


def expect(true: object, otherwise: str) -> None:
    """Raise `Wrong` with `otherwise` unless `true`."""
    if not true:
        raise Wrong(otherwise)


class Call(NamedTuple):
    """Who calls whom, the row of the contract that decides, and the listener that has to see it ("": none)."""

    row: str
    who: str
    whom: str
    port: int
    listener: str
    uid: int = APP


CALLS = (
    Call("O10", "shop", "peer", PORT, "outbound"),
    Call("I4", "peer", "shop", PORT, "inbound"),
    Call("I4", "node", "shop", PORT, "inbound"),
    Call("I4", "node", "host port", HOST_PORT, "inbound"),
    Call("I3", "peer", "shop", EXCLUDED, ""),
    Call("O2", "shop", "peer", EXCLUDED, ""),
    Call("O5", "shop", "peer", PORT, "", uid=PROXY),
    Call("O7", "shop", "itself", PORT, ""),
    Call("O7", "shop", "loopback", PORT, ""),
)


def endpoint(address: str, port: int) -> str:
    """Return address and port as Envoy writes them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Scene:
    """One backend's stage: a network of its own on the node, the pods shop and peer."""

    envoy: Envoy

    def __init__(self, node: Node, program: str, octet: int, backend: str) -> None:
        self._node = node
        self._program = program
        self._backend = backend
        self.shop = node.pod("shop")
        self.peer = node.pod("peer")
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        ours = node.ours(mesh="istio", backends=[backend])
        self._network = node.network(f"mesh-{backend}", node.first("bridge", octet), portmap, ours)
        self._gateway = {4: f"10.{octet}.0.1", 6: f"fd00:{octet}::1"}
        self._addresses: dict[str, dict[int, str]] = {}

    def verb(self, verb: str, pod: Netns, *, fails: bool = False) -> str:
        """Run one CNI verb for the pod; return what it printed, stdout and stderr."""
        meshed = pod is self.shop
        mapping = {"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"}
        capabilities = {
            ANNOTATIONS: MESHED if meshed else {},
            "portMappings": [mapping] if meshed else [],
        }
        name = "shop" if meshed else "peer"
        args = f"{pod.args};K8S_POD_NAMESPACE=demo;K8S_POD_NAME={name}"
        done = self._node.cnitool(verb, self._network, pod, args=args, capabilities=capabilities)
        told = done.stdout + done.stderr
        expect(
            (done.returncode != 0) == fails,
            f"cnitool {verb} for {name} ended with {done.returncode}:\n{told}",
        )
        return told

    def record(self, pod: Netns) -> dict[str, Any]:
        """Return the attachment's record: the one of the pod whose netns it names."""
        directory = os.path.join(self._node.state, "attachments")
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                record: dict[str, Any] = json.load(file)
            if record["netns"] == pod.path:
                return record
        raise Wrong(f"no record of {pod.name}")

    def start_everybody(self) -> None:
        """Start the apps and, as the shop's second container, Envoy."""
        for name, pod in (("shop", self.shop), ("peer", self.peer)):
            pod.serve(name, PORT)
            pod.serve(name, EXCLUDED)
            self._addresses[name] = pod.addresses()
        self._addresses["node"] = self._addresses["host port"] = self._gateway
        self._addresses["itself"] = self._addresses["shop"]
        self._addresses["loopback"] = {4: "127.0.0.1", 6: "::1"}
        self.envoy = Envoy(self.shop, self._program, self._node.directory)

    def call(self, call: Call, family: int) -> dict[str, Any]:
        """Make the call."""
        caller = {"shop": self.shop, "peer": self.peer, "node": self._node.netns}[call.who]
        return caller.call(self._addresses[call.whom][family], call.port, uid=call.uid)

    def observe(self, call: Call, family: int) -> list[str]:
        """Make the call, hold it against the claim, and return its line of the table."""
        who = f"{call.who} (uid {call.uid})" if call.who == "shop" else call.who
        whom = f"{call.whom} {endpoint(self._addresses[call.whom][family], call.port)}"
        answer = self.call(call, family)
        claim = f"{who} → {whom}"
        expect(answer["outcome"] == "answered", f"{claim}: {answer['outcome']}")
        if not call.listener:
            expect(
                "x-seen-by" not in answer["headers"] and self.envoy.silent(), f"{claim}: seen by the proxy"
            )
            return [call.row, who, whom, "nobody: straight", "", ""]
        lines = self.envoy.seen()
        expect(len(lines) == 1, f"{claim}: seen {len(lines)} times: {lines}")
        seen = lines[0]
        target = "shop" if call.whom == "host port" else call.whom
        original = endpoint(self._addresses[target][family], PORT)
        client = self._addresses[call.who][family]
        expect(seen["listener"] == call.listener, f"{claim}: seen by {seen['listener']}")
        expect(
            seen["original"] == original, f"{claim}: original destination {seen['original']}, not {original}"
        )
        expect(seen["client"] == client, f"{claim}: client {seen['client']}, not {client}")
        return [call.row, who, whom, seen["listener"], seen["original"], seen["client"]]

    def break_it(self) -> tuple[str, list[str], str]:
        """Take away what sends on whatever goes out; return it, the command that did, and what CHECK has to name."""
        broken = {
            "nftables": self._nft_delete,
            "iptables": self._iptables_delete,
            "ebpf": self._detach_program,
        }
        what, command = broken[self._backend]()
        self.shop.run(*command)
        return what, command, "connect4" if self._backend == "ebpf" else "O10"

    def _detach_program(self) -> tuple[str, list[str]]:
        links = glob.glob(f"{PINS}/cgroups/*/connect4".format(bpffs=bpffs()))
        expect(len(links) == 1, f"{len(links)} cgroups have a program at connect4, not the shop's alone")
        return "the link of the program at connect(2)", ["rm", links[0]]

    def _nft_delete(self) -> tuple[str, list[str]]:
        table = chain = ""
        for line in self.shop.run("nft", "-a", "-s", "list", "ruleset").splitlines():
            words = line.split()
            if words[:1] == ["table"]:
                table = f"{words[1]} {words[2]}"
            elif words[:1] == ["chain"]:
                chain = words[1]
            elif f"redirect to :{OUTBOUND}" in line:
                rule = line.partition(" # handle ")[0].strip()
                return rule, ["nft", "delete", "rule", *table.split(), chain, "handle", words[-1]]
        raise Wrong(f"nft shows no rule that redirects to {OUTBOUND}")

    def _iptables_delete(self) -> tuple[str, list[str]]:
        for line in self.shop.run("iptables-legacy", "-t", "nat", "-S").splitlines():
            if line.endswith(f"REDIRECT --to-ports {OUTBOUND}"):
                return line, ["iptables-legacy", "-t", "nat", *shlex.split(line.replace("-A ", "-D ", 1))]
        raise Wrong(f"iptables-legacy shows no rule that redirects to {OUTBOUND}")

    def leftovers(self) -> list[tuple[str, str]]:
        """Return, by command, what other people's tools still see of us in the shop and on the node."""
        commands = (
            "nft list ruleset",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "ip -4 rule",
            "ip -6 rule",
            "ip -brief addr show dev lo",
        )
        seen = [(command, _added(self.shop.run(*command.split()))) for command in commands]
        attachments = os.path.join(self._node.state, "attachments")
        seen.append(("ls STATE/attachments", run("ls", attachments)))
        if self._backend == "ebpf":
            pins = PINS.format(bpffs=bpffs())
            seen += [(f"ls BPFFS/{kind}", run("ls", f"{pins}/{kind}")) for kind in ("cgroups", "sandboxes")]
            seen.append(("bpftool map dump pinned BPFFS/maps/policies", self._policies(pins)))
        return seen

    def _policies(self, pins: str) -> str:
        dumped = json.loads(run("bpftool", "--json", "map", "dump", "pinned", f"{pins}/maps/policies"))
        return "".join(f"{policy}\n" for policy in dumped)


def _added(text: str) -> str:
    """Keep what was added: not what a namespace is born with, nor the frame legacy tools print around nothing."""
    frame = ("#", "*", ":INPUT", ":OUTPUT", ":PREROUTING", ":POSTROUTING", ":FORWARD", "COMMIT")
    born = ("0: from all lookup local", "32766: from all lookup main", "32767: from all lookup default")
    lo = "lo UNKNOWN 127.0.0.1/8 ::1/128"
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line not in (*born, lo) and not line.startswith(frame))
