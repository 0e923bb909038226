"""The lab itself: it leaves no process behind, and `need` skips nothing that the kernel should have."""

import os
import subprocess
import sys
import time

import pytest

from tests.lab import need as needs
from tests.lab.namespace import Namespace, identity

STARTER = """
import os, signal
from tests.lab.namespace import Namespace
print(Namespace().pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_gone(pid: int) -> bool:
    """Wait for a process to end, a few seconds at most."""
    for _ in range(300):
        if not os.path.exists(f"/proc/{pid}/ns/net"):
            return True
        time.sleep(0.01)
    return False


def test_a_namespace_is_a_new_one_and_ends_when_closed() -> None:
    """Tests would work on the machine's own network, or fill it with namespaces."""
    namespace = Namespace()
    pid = namespace.pid
    assert identity(namespace.path) != identity("/proc/self/ns/net")
    namespace.close()
    assert is_gone(pid)


def test_a_killed_test_run_leaves_no_process() -> None:
    """A run that is killed leaves namespaces on the machine for good."""
    killed = subprocess.run([sys.executable, "-c", STARTER], capture_output=True, text=True, check=False)
    assert is_gone(int(killed.stdout))


@pytest.fixture
def broken_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a feature whose probe fails."""

    def fail() -> None:
        raise OSError("it is not there")

    monkeypatch.setitem(needs.FEATURES, "broken", needs.Feature(fail, ("CONFIG_BROKEN",)))
    monkeypatch.setattr(needs, "lacking", {})
    needs._reason.cache_clear()


def test_need_skips_what_the_kernel_lacks_and_keeps_the_reason(
    broken_feature: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skip goes unreported, so nobody sees that a part is never tested."""
    monkeypatch.setattr(needs, "_kernel_options", lambda: frozenset({"CONFIG_NET"}))
    with pytest.raises(pytest.skip.Exception, match="it is not there"):
        needs.need("broken")
    assert needs.lacking == {"broken": "it is not there"}


def test_need_fails_where_the_kernel_should_have_it(
    broken_feature: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken probe or machine turns tests of a feature that is there into skips."""
    monkeypatch.setattr(needs, "_kernel_options", lambda: frozenset({"CONFIG_BROKEN"}))
    with pytest.raises(pytest.fail.Exception, match="built with broken"):
        needs.need("broken")
    assert not needs.lacking
