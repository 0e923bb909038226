"""The plugin as an executable, and a sandbox with other people's rules in it."""

import pytest

from install import launcher
from tests.lab.namespace import Namespace
from tests.protocol.caller import Caller


@pytest.fixture(scope="session")
def executable(tmp_path_factory):
    """Write the launcher, once: what a runtime finds in CNI_PATH."""
    return launcher.write(str(tmp_path_factory.mktemp("bin")))


@pytest.fixture(scope="module")
def crowded():
    """Make a netns in which others have rules of every kind; nobody may change it."""
    namespace = Namespace()
    try:
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.run("ip", "rule", "add", "fwmark", "7", "table", "77")
        namespace.run(
            "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT"
        )
        namespace.run(
            "nft",
            "-f",
            "-",
            text="add table inet other\nadd chain inet other c\nadd rule inet other c tcp dport 9 accept\n",
        )
        yield namespace
    finally:
        namespace.close()


@pytest.fixture
def sandbox():
    """Make an empty netns."""
    namespace = Namespace()
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture
def call(executable, sandbox, tmp_path):
    """Call the plugin for an attachment in `sandbox`."""
    return Caller(executable, sandbox.path, str(tmp_path / "state"))
