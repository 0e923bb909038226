"""The two ways to write xtables rules: the host's iptables-restore, or python-iptables in a child.

Not a rule generator and not a parser of options: text in iptables-save's form goes in and comes out.
iptables-restore comes first: an ADD takes 15 ms with it and 700 with python-iptables (docs/ARCHITECTURE.md),
which is for hosts without iptables-restore, and there only where it drives the libxtables it finds.
"""

from cni_plugin.backends.common import Unsupported
from cni_plugin.kernel import netns, nft, process
from cni_plugin.kernel.process import Child, Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Applier(Protocol):
        """Reads and writes the tables of the network namespace the process is in."""

        def save(self, family: int, counters: bool = False) -> str:
            """Return what iptables-save prints. Raises `OSError`."""

        def restore(self, family: int, text: str) -> Child:
            """Start applying `text` as iptables-restore --noflush does."""

        def reprinted(self, family: int, text: str) -> str:
            """Return `text` as `save` would print it, by way of a scratch network namespace."""


_COMMANDS = {4: "iptables", 6: "ip6tables"}
# Legacy first: python-iptables writes legacy tables, and rules must not be in both kinds.
_FLAVOURS = ("-legacy", "", "-nft")
_NAMES = {4: "/proc/self/net/ip_tables_names", 6: "/proc/self/net/ip6_tables_names"}
_NFPROTO = {4: 2, 6: 10}  # linux/netfilter.h


class Restore:
    """iptables-save and iptables-restore of one flavour: "-legacy", "-nft" or "" for the host's choice."""

    def __init__(self, flavour: str) -> None:
        self._flavour = flavour
        # The lock is for tables of one namespace; the host's lock file would make pods wait for each other.
        self._environment = {
            "PATH": ":".join(process.DIRECTORIES),
            "XTABLES_LOCKFILE": "/proc/self/ns/net",
            "LC_ALL": "C",
        }

    def _program(self, family: int, verb: str) -> str:
        return process.find(f"{_COMMANDS[family]}{self._flavour}-{verb}")

    def save(self, family: int, counters: bool = False) -> str:
        """Return what iptables-save prints. Raises `OSError`."""
        return waited(Child(lambda: self._run(family, "save", ("-c",) if counters else (), "")))

    def restore(self, family: int, text: str) -> Child:
        """Start iptables-restore --noflush on `text`."""
        return Child(lambda: self._run(family, "restore", ("--noflush",), text))

    def _run(self, family: int, verb: str, arguments: tuple[str, ...], text: str) -> str:
        return process.run(self._program(family, verb), arguments, text, self._environment)

    def reprinted(self, family: int, text: str) -> str:
        """Return `text` as `save` would print it, by way of a scratch network namespace."""

        def work() -> str:
            netns.unshare(netns.CLONE_NEWNET)
            self._run(family, "restore", ("--noflush",), text)
            return self._run(family, "save", (), "")

        return waited(Child(work))

    def works(self) -> bool:
        """Tell whether its programs are here and the kernel answers them."""
        if not all(self._program(family, verb) for family in (4, 6) for verb in ("save", "restore")):
            return False
        try:
            waited(Child(lambda: self._run(4, "save", ("-t", "nat"), "")))
        except OSError:
            return False
        return True


def waited(child: Child) -> str:
    """Wait for `child`; its failure becomes an `OSError`."""
    try:
        return child.wait()
    except Failed as failure:
        raise OSError(str(failure)) from None


def in_use(family: int) -> bool:
    """Tell whether this network namespace has xtables rules of `family`, of either kind.

    The kernel lists legacy tables that were ever asked for; nft's kind are tables of nf_tables.
    """
    try:
        with open(_NAMES[family], "rb") as names:
            if names.read():
                return True
    except OSError:
        pass  # a kernel without legacy tables
    return any(nft.exists(table, _NFPROTO[family]) for table in ("nat", "mangle", "raw", "filter"))


def choose(cache_dir: str) -> "Applier":
    """Return the first applier that works here. Raises `Unsupported` with what is missing."""
    for flavour in _FLAVOURS:
        applier = Restore(flavour)
        if applier.works():
            return applier
    from cni_plugin.backends import python_iptables  # noqa: PLC0415 - the second choice

    reason = python_iptables.why_not(cache_dir)
    if reason:
        raise Unsupported(
            f"no working iptables-restore in {':'.join(process.DIRECTORIES)}; python-iptables {reason}"
        )
    return python_iptables.PythonIptables()
