"""Which row decided, as each backend counts it: the same rows for the same dials, on the whole table of the contract.

Not where the dials end: tests/contract.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin.backends.hits import ROWS
from cni_plugin.backends.iptables import Iptables
from cni_plugin.backends.python_iptables import PythonIptables
from cni_plugin.kernel.netns import cookie, entered
from tests.contract.run import LISTENERS, Programmer, dial, redirection
from tests.contract.table import BASE, CASES, Case
from tests.contract.test_contract import BACKENDS
from tests.lab.ground import bpffs
from tests.lab.need import need
from tests.lab.topology import OWN_NAMES, Pod, address

HEADER = os.path.join(os.path.dirname(__file__), "..", "..", "bpf", "policy.h")


def counters(pod: Pod, backend: str) -> dict[str, int]:
    """Return what the backend has counted."""
    with entered(pod.path):
        return pod.backend(backend).counters()


@pytest.fixture(scope="module")
def program() -> Iterator[Programmer]:
    """Give the programmer of the module's one pod."""
    pod = Pod()
    yield Programmer(pod)
    pod.close()


def _forwards(case: Case) -> bool:
    """Tell whether a line is of traffic that the pod forwards: a backend of sockets does not count it."""
    forwarded = case.who.place == "guest" and case.who.to not in OWN_NAMES
    return bool(case.changes.get("virtual_interfaces")) or forwarded


RUNS = [
    pytest.param(backend, case, family, id=f"{backend}-{case.name}-ipv{family}")
    for backend in BACKENDS
    for case in CASES
    for family in case.over
    if backend != "ebpf" or not _forwards(case)
]


@pytest.mark.parametrize(("backend", "case", "family"), RUNS)
def test_the_row_that_decides_is_counted(program: Programmer, backend: str, case: Case, family: int) -> None:
    """`explain --live` blames a row that had no part in it, or another one with each backend."""
    need(backend)
    program(backend, redirection(case), case.families)
    before = counters(program.pod, backend)
    program.pod.endpoints[case.who.place].dial_all([dial(case.who, family)])
    after = counters(program.pod, backend)
    new = {row: after[row] - before.get(row, 0) for row in after if after[row] > before.get(row, 0)}
    if _is_untouched(case, family):
        assert new == {}
        return
    if backend != "ebpf" and case.ends == "refused" and case.changes.get("inbound") == "tproxy":
        new.pop("O11", None)  # the reset that refuses leaves the sandbox too
    passing_udp = case.who.protocol == "udp" and case.ends not in (*LISTENERS, "refused")
    assert list(new) == [case.row] or (passing_udp and not new), new


def _is_untouched(case: Case, family: int) -> bool:
    """Tell whether the dial is in none of the tables that are on."""
    direction = "inbound" if case.row.startswith("I") else "outbound"
    return family not in case.families or (case.changes.get(direction) == "off" and not _forwards(case))


def bpftool(*arguments: str) -> Any:
    """Return what bpftool prints."""
    done = subprocess.run(["bpftool", "-j", *arguments], check=True, capture_output=True)
    return json.loads(done.stdout)


def dials(pod: Pod, backend: str) -> None:
    """Program the pod, dial three times out and once in."""
    pod.program(backend, BASE)
    for _ in range(3):
        pod.dial(address("service", 4), 80, uid=1000, gid=1000)
    pod.outside.dial(address("own", 4), 80)


def test_rows_are_the_headers() -> None:
    """A program counts for one row, and people are shown another."""
    with open(HEADER, encoding="utf-8") as file:
        (listed,) = re.findall(r"enum row \{(.*?)\}", file.read(), re.DOTALL)
    assert listed.replace(",", " ").split() == ["NO_ROW", *(row.upper() for row in ROWS), "ROWS"]


def test_bpftool_agrees_and_delete_leaves_no_counter(program: Programmer) -> None:
    """Hits are of one CPU or of another sandbox, or every pod leaves an element behind for good."""
    need("ebpf")
    pod, path = program.pod, f"{bpffs()}/mesh-redirect/1/maps/counters"
    dials(pod, "ebpf")
    assert counters(pod, "ebpf") == {"O10": 3, "I4": 1}
    with entered(pod.path):
        mine = cookie()
    (found,) = [e for e in bpftool("map", "dump", "pinned", path) if e["formatted"]["key"] == mine]
    cpus = [entry["value"]["of"] for entry in found["formatted"]["values"]]
    assert [sum(of) for of in zip(*cpus, strict=True)][1:] == [
        {"O10": 3, "I4": 1}.get(row, 0) for row in ROWS
    ]
    pod.add("ebpf", BASE)
    assert counters(pod, "ebpf") == {}, "a new ADD counts anew, as rules do"
    pod.clear("ebpf")
    assert [e for e in bpftool("map", "dump", "pinned", path) if e["formatted"]["key"] == mine] == []
    assert counters(pod, "ebpf") == {}


def test_nft_agrees(program: Programmer) -> None:
    """The counters read are other rules', or their bytes."""
    need("nftables")
    dials(program.pod, "nftables")
    assert counters(program.pod, "nftables") == {"O10": 3, "I4": 1}
    listed = json.loads(program.pod.namespace.run("nft", "-j", "list", "table", "inet", "mesh_redirect"))
    packets = {}
    for rule in (entry["rule"] for entry in listed["nftables"] if "rule" in entry):
        counter = next(part["counter"] for part in rule["expr"] if "counter" in part)
        packets[rule["comment"]] = packets.get(rule["comment"], 0) + counter["packets"]
    assert packets["O10 included destination"] == 3
    assert packets["I4 to the proxy"] == 1
    program.pod.clear("nftables")
    assert counters(program.pod, "nftables") == {}


def test_python_iptables_reads_the_same_counters(program: Programmer) -> None:
    """On a host without iptables-save nothing has ever been hit."""
    need("iptables")
    dials(program.pod, "iptables")
    with entered(program.pod.path):
        assert Iptables("/nowhere", PythonIptables()).counters() == {"O10": 3, "I4": 1}
    assert counters(program.pod, "iptables") == {"O10": 3, "I4": 1}
