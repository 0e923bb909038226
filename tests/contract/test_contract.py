"""The contract's table on the real kernel: every line by every backend in every family, and the oracle on the same lines."""

from collections.abc import Iterator

import pytest

from cni_plugin.backends.common import Unsupported
from cni_plugin.kernel.netns import entered
from cni_plugin.model.contract import PASS, REDIRECT, REJECT, outcome
from tests.contract.run import (
    LISTENERS,
    Programmer,
    assert_both_ends_are_told_the_truth,
    dial,
    probe,
    redirection,
    where_it_ended,
)
from tests.contract.table import BASE, CASES, Case
from tests.lab.need import need
from tests.lab.topology import DEAD, OWN_NAMES, Pod, address

BACKENDS = ("nftables", "iptables", "ebpf")
LINES = [pytest.param(case, family, id=f"{case.name}-ipv{family}") for case in CASES for family in case.over]


def met_by_no_socket(case: Case) -> bool:
    """Tell whether a line is of traffic the pod only forwards, which a backend of sockets does not see."""
    forwarded = case.who.place == "guest" and case.who.to not in OWN_NAMES
    return bool(case.changes.get("virtual_interfaces")) or (forwarded and case.ends == "inbound")


RUNS = [
    pytest.param(backend, case, family, id=f"{backend}-{case.name}-ipv{family}")
    for backend in BACKENDS
    for case in CASES
    for family in case.over
    if backend != "ebpf" or not met_by_no_socket(case)
]


@pytest.fixture(scope="module")
def program(shared_pod: Pod) -> Iterator[Programmer]:
    """Give the programmer of the module's one pod."""
    return Programmer(shared_pod)


@pytest.mark.parametrize(("backend", "case", "family"), RUNS)
def test_the_kernel_does_what_the_table_says(
    program: Programmer, backend: str, case: Case, family: int
) -> None:
    """Traffic of this line goes elsewhere than the contract says, or one of its ends is told a wrong address."""
    need(backend)
    program(backend, redirection(case), case.families)
    seen = program.pod.endpoints[case.who.place].dial_all([dial(case.who, family)])[0]
    assert where_it_ended(seen, case.who.port) == case.ends, seen
    if seen.result == "connected":
        assert_both_ends_are_told_the_truth(seen, case.who, family, redirection(case))


def test_ebpf_leaves_guests_to_the_next_backend(program: Programmer) -> None:
    """A guest's traffic, which no socket of this kernel carries, is taken on by a backend that cannot see it."""
    need("ebpf")
    with entered(program.pod.path), pytest.raises(Unsupported, match="virtualInterfaces"):
        program.pod.backend("ebpf").probe(BASE.replace(virtual_interfaces=("net1",)), (4, 6))


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_ebpf_lets_pass_what_the_pod_forwards(program: Programmer, family: int) -> None:
    """The documented difference is another one: what a pod only forwards is half redirected, or lost."""
    need("ebpf")
    program("ebpf", BASE, (4, 6))
    seen = program.pod.guest.dial(address("service", family), 80)
    assert (seen.where, seen.peername) == ("outside", (address("service", family), 80))


@pytest.mark.parametrize(("case", "family"), LINES)
def test_the_oracle_says_what_the_table_says(case: Case, family: int) -> None:
    """`explain --probe` tells people something else than the kernel does."""
    said = outcome(redirection(case), case.families, probe(case.who, family))
    if case.ends in LISTENERS:
        expected = (case.row, REDIRECT, LISTENERS[case.ends])
    elif case.ends == "refused":
        expected = (case.row, REJECT, 0) if case.row == "udp443" else (case.row, REDIRECT, DEAD)
    else:
        expected = (case.row, PASS, 0)
    assert (said.row, said.action, said.port) == expected, said.why


def test_every_row_of_the_contract_has_a_line() -> None:
    """A row of the contract is claimed by nobody, so nothing would notice when it breaks."""
    rows = {f"I{i}" for i in range(1, 6)} | {f"O{i}" for i in range(1, 12)} | {"udp443"}
    assert {case.row for case in CASES} == rows
