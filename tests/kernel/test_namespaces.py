"""Entering namespaces, children in them, and the few routes the plugin makes itself."""

import os

import pytest

from cni_plugin.kernel import netns, nft, process, rtnl
from tests.lab.namespace import Namespace, identity


@pytest.fixture
def namespace():
    """Give a new namespace."""
    made = Namespace()
    yield made
    made.close()


def test_in_and_out(namespace: Namespace) -> None:
    """The process stays in the pod's namespace, also when what it did there fails."""
    home = identity("/proc/self/ns/net")
    with netns.entered(namespace.path):
        assert identity("/proc/self/ns/net") == identity(namespace.path)
    with pytest.raises(KeyError), netns.entered(namespace.path):
        raise KeyError
    assert identity("/proc/self/ns/net") == home


@pytest.mark.parametrize("path", ["/nowhere", "/etc/passwd", "/proc/self/ns/uts", "/", "", "/etc/passwd/x"])
def test_what_is_no_namespace(path: str) -> None:
    """A path that is not a network namespace's is taken for a failure of the kernel."""
    with pytest.raises(netns.EnterFailed) as raised, netns.entered(path):
        pass
    assert raised.value.gone


def test_a_fifo_does_not_hang(tmp_path) -> None:
    """CNI_NETNS naming a FIFO stops the plugin for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(netns.EnterFailed) as raised, netns.entered(str(tmp_path / "fifo")):
        pass
    assert raised.value.gone


def test_cookies_tell_namespaces_apart(namespace: Namespace) -> None:
    """GC takes a new pod's namespace at an old path for the old one's."""
    with netns.entered(namespace.path):
        there = netns.cookie()
    assert there
    assert there != netns.cookie()


def test_is_own(namespace: Namespace) -> None:
    """The plugin redirects the namespace it runs in: the host's."""
    assert netns.is_own("/proc/self/ns/net")
    assert not netns.is_own(namespace.path)
    assert not netns.is_own("/nowhere")


def test_a_child_hands_back_text_and_failure() -> None:
    """What went wrong in a child is lost, or a child that ends by itself is taken for one that did its work."""
    assert process.Child(lambda: "x" * 300_000).wait() == "x" * 300_000
    with pytest.raises(process.Failed, match="ZeroDivisionError"):
        process.Child(lambda: str(1 // 0)).wait()
    with pytest.raises(process.Failed, match="status 3"):
        process.Child(lambda: os._exit(3)).wait()
    with pytest.raises(process.Failed, match="signal 9"):
        process.Child(lambda: os.kill(os.getpid(), 9)).wait()


def test_run_gives_input_and_catches_output() -> None:
    """A program waits for its input or for its reader, or what it complained of is lost."""
    text = "line\n" * 100_000
    assert process.run("/bin/cat", (), text, {}) == text
    with pytest.raises(process.Failed, match="No such file"):
        process.run("/bin/ls", ("/nowhere",), "", {"LC_ALL": "C"})
    with pytest.raises(process.Failed, match="/bin/nosuch"):
        process.run("/bin/nosuch", (), "", {})


def test_routes_are_made_once_and_unmade(namespace: Namespace) -> None:
    """A second ADD stacks a second ip rule, as `ip rule add` does, and DEL takes away one of two."""
    with netns.entered(namespace.path):
        routes = rtnl.Routes()
    sixth = bytes(15) + b"\6"
    routes.set_loopback(True)
    before = namespace.run("ip", "rule"), namespace.run("ip", "-6", "rule"), namespace.run("ip", "addr")
    for new in (True, False):
        assert routes.add_address(sixth) is new
        for family in (4, 6):
            assert routes.add_local_route(family, 133) is new
            assert routes.add_rule(family, 1337, 133) is new
    assert namespace.run("ip", "rule").count("fwmark 0x539 lookup 133") == 1
    assert "local default dev lo" in namespace.run("ip", "-6", "route", "show", "table", "133")
    assert all(
        routes.has_rule(family, 1337, 133) and routes.has_local_route(family, 133) for family in (4, 6)
    )
    assert routes.has_address(sixth)
    for there in (True, False):
        assert routes.remove_address(sixth) is there
        for family in (4, 6):
            assert routes.remove_rule(family, 1337, 133) is there
            assert routes.remove_local_route(family, 133) is there
    routes.close()
    after = namespace.run("ip", "rule"), namespace.run("ip", "-6", "rule"), namespace.run("ip", "addr")
    assert after == before


def test_nf_tables_is_asked_for_tables(namespace: Namespace) -> None:
    """A table that is there is not found, or one that is not is deleted at the price of an RCU grace period."""
    namespace.run("nft", "add", "table", "inet", "somebody")
    with netns.entered(namespace.path):
        nft.available()
        assert nft.exists("somebody")
        assert not nft.exists("nobody")
