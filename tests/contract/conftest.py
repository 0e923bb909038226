"""Pods for the behaviour tests."""

from collections.abc import Iterator

import pytest

from tests.lab.need import need
from tests.lab.topology import Pod


@pytest.fixture(scope="module")
def shared_pod() -> Iterator[Pod]:
    """Give a pod whose redirection every test programs anew: it is never rebuilt."""
    pod = Pod()
    yield pod
    pod.close()


@pytest.fixture
def pod() -> Iterator[Pod]:
    """Give a pod of the test's own, in which nothing was ever programmed or tracked."""
    pod = Pod()
    yield pod
    pod.close()


@pytest.fixture(params=["nftables", "iptables", "ebpf"])
def backend(request: pytest.FixtureRequest) -> str:
    """Give each backend's name, where the kernel has it."""
    name = str(request.param)
    need(name)
    return name
