"""`make demo`: a pod's traffic really goes through its Envoy, with every backend, and nothing is left behind.

It is a demonstration that judges itself: every line it prints was observed, and it ends with an error where
what it observed is not what it says. Not a test of details: those are in tests/.
"""

import os
import shlex
import sys
import tempfile
import time

from tabulate import SEPARATING_LINE, tabulate

from tests.demo.story import CALLS, EXCLUDED, PORT, Scene, Wrong, expect
from tests.runtime import envoy
from tests.runtime.envoy import INBOUND, OUTBOUND
from tests.runtime.node import APP, PROXY, Node

BACKENDS = ("nftables", "iptables", "ebpf")
HEAD = ("row", "who called", "whom", "seen by", "original destination", "client the proxy saw")
DIM, BOLD, OFF = ("\033[2m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(what: str, told: str) -> None:
    """Print one fact."""
    print(f"  {BOLD}{what:<8}{OFF} {told}")


def quote(command: str, lines: list[str]) -> None:
    """Print a command and what it said."""
    print(f"  {'':8} {DIM}$ {command}{OFF}")
    for line in lines:
        print(f"  {'':8} {DIM}{line}{OFF}")


def introduce() -> None:
    """Say who is on the stage."""
    print(
        f"\n{BOLD}mesh-redirect{OFF}: a pod's traffic through its sidecar, and no privileged init container\n"
    )
    say("node", "a network namespace of its own, with a bridge")
    say("chain", "bridge → portmap → mesh-redirect, CNI 1.1.0, driven by cnitool")
    say(
        "shop",
        f"a meshed pod: an app on {PORT} and {EXCLUDED} (uid {APP}); Envoy on {OUTBOUND}, {INBOUND} (uid {PROXY})",
    )
    say("peer", f"a pod without a sidecar: an app on {PORT} and {EXCLUDED}")


def attach(scene: Scene) -> None:
    """Run ADD for both pods and show what was decided."""
    for pod, verdict in ((scene.shop, "redirect"), (scene.peer, "pass")):
        began = time.perf_counter()
        scene.verb("add", pod)
        took = (time.perf_counter() - began) * 1000
        record = scene.record(pod)
        expect(
            record["verdict"] == verdict, f"the record of {pod.name} says {record['verdict']}, not {verdict}"
        )
        role = "shop" if pod is scene.shop else "peer"
        say(
            "ADD", f"{role}: {verdict}, because {record['detail']} {DIM}(the whole chain: {took:.0f} ms){OFF}"
        )


def calls(scene: Scene) -> None:
    """Let everybody call everybody, in both families, and show who saw it."""
    scene.start_everybody()
    rows = [[scene.observe(call, family) for call in CALLS] for family in (4, 6)]
    print()
    print(tabulate([*rows[0], SEPARATING_LINE, *rows[1]], HEAD, tablefmt="rounded_outline"))
    print()


def without_a_proxy(scene: Scene) -> None:
    """Stop Envoy: nothing may go around it."""
    scene.envoy.stop()
    for family in (4, 6):
        for call in CALLS:
            if call.listener:
                outcome = scene.call(call, family)["outcome"]
                expect(outcome == "refused", f"without a proxy, {call.who} → {call.whom} was {outcome}")
    say("no proxy", "Envoy stopped: every call it used to see is refused at once; none goes around it")


def check(scene: Scene) -> None:
    """CHECK, break one thing, CHECK again: it has to name the thing."""
    scene.verb("check", scene.shop)
    say("CHECK", "as it should be")
    what, command, name = scene.break_it()
    say("break", f"somebody takes away {what}")
    quote(shlex.join(command), [])
    failed = scene.verb("check", scene.shop, fails=True).strip()
    expect(name in failed, f"CHECK does not name {name}:\n{failed}")
    say("CHECK", "fails, and names it")
    quote("cnitool check", failed.splitlines())


def detach(scene: Scene) -> None:
    """DEL for both pods, and look for leftovers with other people's tools."""
    scene.verb("del", scene.shop)
    scene.verb("del", scene.shop)
    scene.verb("del", scene.peer)
    say("DEL", "done; once more, as runtimes do: done")
    leftovers = scene.leftovers()
    for command, left in leftovers:
        expect(not left, f"left behind, by {command}:\n{left}")
    say("proof", "nothing of ours is left, as these see it:")
    for command, _ in leftovers:
        quote(command, [])


def play(node: Node, program: str, number: int, backend: str) -> None:
    """Tell the whole story with one backend."""
    print(f"\n{BOLD}━━ {backend} {'━' * (96 - len(backend))}{OFF}\n")
    scene = Scene(node, program, 88 + number, backend)
    attach(scene)
    calls(scene)
    without_a_proxy(scene)
    check(scene)
    detach(scene)


def main() -> int:
    """Play every backend's story; return 1, naming it, when something was not as said."""
    began = time.monotonic()
    introduce()
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-redirect-demo-") as directory:
            with Node(directory) as node:
                program = envoy.binary(directory)
                for number, backend in enumerate(BACKENDS):
                    play(node, program, number, backend)
            mine = f"mr-{os.getpid()}-"
            expect(
                not [name for name in os.listdir("/run/netns") if name.startswith(mine)],
                "namespaces are left",
            )
    except Wrong as wrong:
        print(f"\n{BOLD}not as said:{OFF} {wrong}", file=sys.stderr)
        return 1
    print(f"\nAll as said, in {time.monotonic() - began:.0f} s. No namespace, rule or file is left.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
