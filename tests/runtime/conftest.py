"""Fixtures: a throw-away node per test, and one Envoy for all of them."""

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.runtime.envoy import binary
from tests.runtime.node import Node


@pytest.fixture
def node() -> Iterator[Node]:
    """Make a node; pytest's own directories are closed to other users, whom proxies and apps are."""
    with tempfile.TemporaryDirectory(prefix="mesh-redirect-test-") as directory, Node(directory) as made:
        yield made


@pytest.fixture(scope="session")
def envoy_program() -> Iterator[str]:
    """Put Envoy where every user can run it, once."""
    with tempfile.TemporaryDirectory(prefix="mesh-redirect-envoy-") as directory:
        os.chmod(directory, 0o755)
        yield binary(directory)
