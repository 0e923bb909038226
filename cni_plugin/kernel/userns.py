"""What ids of the user namespace that owns our network namespace are on the machine. We do not stay in it.

BPF programs see the machine's ids (bpf_get_current_uid_gid); the sandbox's owners are its own.
"""

import os

from cni_plugin.kernel import netns
from cni_plugin.model.redirection import Spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    # (first id inside, first id outside, count), user_namespaces(7)
    Extents = list[tuple[int, int, int]]


class Ids:
    """Turns spans of "uid" or "gid" of that user namespace into the machine's."""

    def __init__(self) -> None:
        self._maps = maps()

    def __call__(self, kind: str, spans: Spans) -> Spans:
        """Return `spans` as the machine counts; ids that are nobody's there are left out."""
        if self._maps is None:
            return spans
        extents = self._maps[kind]
        return tuple(
            (max(low, inside) - inside + outside, min(high, inside + count - 1) - inside + outside)
            for low, high in spans
            for inside, outside, count in extents
            if low < inside + count and inside <= high
        )


def maps() -> "dict[str, Extents] | None":
    """Return the extents of "uid" and "gid", or None where the namespace is ours. Raises `OSError`.

    A map is shown as the one who opens it counts, and only for a process in there: so a child goes.
    """
    owner = netns.owning_user_namespace()
    if owner is None:
        return None
    there, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _stay(owner, there[1], wait)
    for fd in (owner, there[1], wait[0]):
        os.close(fd)
    try:
        if os.read(there[0], 1) != b"+":
            raise OSError("the user namespace of the sandbox cannot be entered")
        return {kind: _extents(f"/proc/{pid}/{kind}_map") for kind in ("uid", "gid")}
    finally:
        os.close(there[0])
        os.close(wait[1])
        os.waitpid(pid, 0)


def _stay(owner: int, there: int, wait: "tuple[int, int]") -> None:
    """Enter, say so, and stay until the parent has read. It does not come back."""
    try:
        os.close(wait[1])
        netns.setns(owner, netns.CLONE_NEWUSER)
        os.write(there, b"+")
        os.read(wait[0], 1)
    finally:
        os._exit(0)


def _extents(path: str) -> "Extents":
    with open(path) as file:
        lines = [line.split() for line in file]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in lines]
