"""Which row decided, as each backend counts it: the same rows for the same dials, on the whole table of the contract.

Not where the dials end: tests/contract.
"""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin.backends import nftables
from cni_plugin.backends.hits import ROWS
from cni_plugin.kernel.netns import cookie, entered
from tests.contract.run import Programmer, dial, redirection
from tests.contract.table import BASE, CASES, Case, app, node
from tests.contract.test_contract import BACKENDS, _forwards
from tests.lab.ground import bpffs
from tests.lab.need import need
from tests.lab.topology import Pod, address


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


RUNS = [
    pytest.param(backend, case, family, id=f"{backend}-{case.name}-ipv{family}")
    for backend in BACKENDS
    for case in CASES
    for family in case.over
    if backend != "ebpf" or not _forwards(case)
]


@pytest.mark.parametrize(("backend", "case", "family"), RUNS)
def test_the_row_that_decides_is_counted(
    program: Programmer, backend: str, case: Case, family: int
) -> None:
    """`explain --live` blames a row that had no part in it, or another one with each backend."""
    need(backend)
    program(backend, redirection(case), case.families)
    before = counters(program.pod, backend)
    program.pod.endpoints[case.who.place].dial_all([dial(case.who, family)])
    after = counters(program.pod, backend)
    new = {row: after[row] - before.get(row, 0) for row in after if after[row] > before.get(row, 0)}
    assert list(new) == [case.row], new
