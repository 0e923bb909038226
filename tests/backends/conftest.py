"""A bare network namespace to write rules into, and a way to do so."""

from collections.abc import Iterator

import pytest

from tests.lab.namespace import Namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Give a new namespace with nothing in it but lo."""
    made = Namespace()
    yield made
    made.close()
