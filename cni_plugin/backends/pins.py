"""What is pinned where: the node's maps and programs, a cgroup's links, a sandbox's link. No policy in here.

    <bpffs>/mesh-redirect/<layout>/maps                        the node's, made by the first ADD
    <bpffs>/mesh-redirect/<layout>/programs-<digest>           the node's, of one build of this package
    <bpffs>/mesh-redirect/<layout>/cgroups/<id>/<program>      links, shared by all sandboxes of the cgroup
    <bpffs>/mesh-redirect/<layout>/sandboxes/<cookie>/inbound  the link of a sandbox's own program

The last three are made under another name and renamed: each is there whole, or not at all, or is
what a killed DEL left.
Another build's first ADD loads its programs beside the others', on the same maps, and moves every link.
Long because every way into the tree and out of it must agree on what a killed process may have left there.
"""

import errno
import fcntl
import os

from cni_plugin.backends.common import Unsupported
from cni_plugin.kernel import bpf, libbpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# Changes with the meaning of a map: what an older layout pinned goes on working beside this one.
LAYOUT = "1"
OBJECTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bpf")
_PROGRAMS = "programs-"
# Objects of the node, and the programs attached to a cgroup with their hook.
_NODE = ("adopt", "connect", "datagram", "peername", "sockops", "sockopt")
ATTACHED = {
    # What answers is attached before what redirects, so no connection is redirected that cannot be explained.
    "getsockopt": "getsockopt",
    "getpeername4": "getpeername4",
    "getpeername6": "getpeername6",
    "recvmsg4": "recvmsg4",
    "recvmsg6": "recvmsg6",
    "follow": "sockops",
    "sendmsg4": "sendmsg4",
    "sendmsg6": "sendmsg6",
    "connect4": "connect4",
    "connect6": "connect6",
}


class Pins:
    """The tree of pins under one bpffs."""

    def __init__(self, bpffs: str) -> None:
        self.top = f"{bpffs}/mesh-redirect/{LAYOUT}"
        self._maps = f"{self.top}/maps"

    @property
    def _programs(self) -> str:
        with open(f"{OBJECTS}/digest", encoding="utf-8") as file:
            return f"{self.top}/{_PROGRAMS}{file.read().strip()}"

    # -- the node ----------------------------------------------------------------------------------

    def map(self, name: str, key_size: int, value_size: int) -> bpf.Map:
        """Return one of the node's maps. Raises `OSError`."""
        return bpf.Map(bpf.pinned(f"{self._maps}/{name}"), key_size, value_size)

    def program(self, name: str) -> int:
        """Return a descriptor of one of the node's programs. Raises `OSError`."""
        return bpf.pinned(f"{self._programs}/{name}")

    def is_used(self) -> bool:
        """Tell whether some build has loaded its programs: else nothing of ours is there."""
        return os.path.isdir(self._maps)

    def load(self) -> None:
        """Load the node's programs if they are not there. Raises `Unsupported` if the kernel refuses."""
        final = self._programs
        if os.path.isdir(final):
            return
        try:
            os.makedirs(self._maps, mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unsupported(f"the bpffs cannot be written: {error}") from None
        with Lock(self.top, fcntl.LOCK_EX):
            if os.path.isdir(final):
                return
            draft = Draft(final)
            try:
                for name in _NODE:
                    self._load(f"{OBJECTS}/{name}.o", draft.path)
                # Each sandbox has its own, but whether this kernel takes it has to be known before one does.
                self._inbound(0).close()
                self._move_links(draft.path)
                draft.commit()
            except OSError as error:
                draft.abandon()
                raise Unsupported(str(error)) from None
            for name in _names(self.top):
                if name.startswith(_PROGRAMS) and name != os.path.basename(final):
                    _remove_tree(f"{self.top}/{name}")

    def _load(self, path: str, programs: str) -> None:
        loaded = libbpf.Object(path, self._maps)
        try:
            for name, fd in loaded.programs():
                bpf.pin(fd, f"{programs}/{name}")
        finally:
            loaded.close()

    def _move_links(self, programs: str) -> None:
        """Give every link of another build the program of the same name; traffic sees one or the other."""
        for cgroup in self.cgroups():
            for name in ATTACHED:
                _move(f"{self.top}/cgroups/{cgroup}/{name}", bpf.pinned(f"{programs}/{name}"))
        for cookie in self.sandboxes():
            loaded = self._inbound(cookie)
            try:
                for name, fd in loaded.programs():
                    _move(f"{self.top}/sandboxes/{cookie}/{name}", os.dup(fd))
            finally:
                loaded.close()

    # -- cgroups -----------------------------------------------------------------------------------

    def has_links(self, cgroup: int) -> bool:
        """Tell whether the cgroup's links are there."""
        # The first that a DEL removes: without it the rest is what a killed one left.
        return os.path.exists(f"{self.top}/cgroups/{cgroup}/{tuple(ATTACHED)[-1]}")

    def link_cgroup(self, path: str, cgroup: int) -> None:
        """Attach the node's programs; the lock is the caller's. Raises `OSError`, nothing made."""
        self.unlink_cgroup(cgroup)
        target = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        draft = Draft(f"{self.top}/cgroups/{cgroup}")
        try:
            for name, hook in ATTACHED.items():
                _attach(self.program(name), target, hook, f"{draft.path}/{name}")
            draft.commit()
        except OSError:
            draft.abandon()
            raise
        finally:
            os.close(target)

    def unlink_cgroup(self, cgroup: int) -> None:
        """Detach from the cgroup; the lock is the caller's. What redirects goes first."""
        _remove(f"{self.top}/cgroups/{cgroup}", tuple(reversed(ATTACHED)))

    def cgroups(self) -> "list[int]":
        """Return the ids of the cgroups that have links."""
        return _numbers(f"{self.top}/cgroups")

    # -- sandboxes ---------------------------------------------------------------------------------

    def has_inbound(self, cookie: int) -> bool:
        """Tell whether the sandbox's link is there."""
        return os.path.exists(f"{self.top}/sandboxes/{cookie}/inbound")

    def link_inbound(self, cookie: int, netns: int) -> None:
        """Load and attach the sandbox's own program. Raises `OSError`, nothing made."""
        self.unlink_inbound(cookie)
        draft = Draft(f"{self.top}/sandboxes/{cookie}")
        try:
            loaded = self._inbound(cookie)
            try:
                for name, fd in loaded.programs():
                    _attach(os.dup(fd), netns, "sk_lookup", f"{draft.path}/{name}")
            finally:
                loaded.close()
            draft.commit()
        except OSError:
            draft.abandon()
            raise

    def _inbound(self, cookie: int) -> libbpf.Object:
        constants = {".rodata": cookie.to_bytes(8, "little")}
        return libbpf.Object(f"{OBJECTS}/inbound.o", self._maps, constants)

    def inbound(self, cookie: int) -> int:
        """Return a descriptor of the sandbox's link. Raises `OSError`."""
        return bpf.pinned(f"{self.top}/sandboxes/{cookie}/inbound")

    def unlink_inbound(self, cookie: int) -> None:
        """Detach from the sandbox."""
        _remove(f"{self.top}/sandboxes/{cookie}", ("inbound",))

    def sandboxes(self) -> "list[int]":
        """Return the cookies of the sandboxes that have a link."""
        return _numbers(f"{self.top}/sandboxes")

    def sweep(self) -> None:
        """Remove drafts whose writer died; the lock is the caller's."""
        for directory in (self.top, f"{self.top}/cgroups", f"{self.top}/sandboxes"):
            for name in _names(directory):
                if name.startswith(Draft.MARK):
                    _remove_tree(f"{directory}/{name}")


class Draft:
    """A directory of pins about to be put in place. A dot is not allowed in a bpffs."""

    MARK = "draft-"

    def __init__(self, final: str) -> None:
        parent, name = os.path.split(final)
        self._final = final
        self.path = f"{parent}/{self.MARK}{os.getpid()}-{name}"
        os.makedirs(self.path, mode=0o700)

    def commit(self) -> None:
        """Put it in place."""
        os.rename(self.path, self._final)

    def abandon(self) -> None:
        """Throw it away, and with the pins what they kept alive."""
        _remove_tree(self.path)


class Lock:
    """The node's lock, shared or exclusive; the kernel lets go of it when we die."""

    def __init__(self, path: str, kind: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._fd, kind)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _attach(program: int, target: int, hook: str, path: str) -> None:
    """Attach `program`, which is closed, and pin the link."""
    try:
        made = bpf.link(program, target, hook)
    finally:
        os.close(program)
    try:
        bpf.pin(made, path)
    finally:
        os.close(made)


def _move(path: str, program: int) -> None:
    """Have the link pinned at `path` run `program`, which is closed."""
    try:
        pinned = bpf.pinned(path)
        try:
            bpf.update_link(pinned, program)
        finally:
            os.close(pinned)
    except OSError as error:
        if error.errno not in (errno.ENOLINK, errno.ENOENT):  # its cgroup or netns is gone, or itself is
            raise
    finally:
        os.close(program)


def _detach(path: str) -> None:
    """Remove a link's pin, and detach the link now.

    Left alone the kernel detaches it some time later: a next ADD's link beside it would see what this one
    redirected, as if a client had dialled the proxy. The pin first: where it is, the link runs.
    """
    pinned = bpf.pinned(path)
    try:
        os.unlink(path)
        bpf.detach(pinned)
    finally:
        os.close(pinned)


def _remove(directory: str, names: "tuple[str, ...]") -> None:
    for name in names:
        try:
            _detach(f"{directory}/{name}")
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _remove_tree(path: str) -> None:
    for name in _names(path):
        inner = f"{path}/{name}"
        if os.path.isdir(inner):
            _remove_tree(inner)
        else:
            os.unlink(inner)
    os.rmdir(path)


def _names(directory: str) -> "list[str]":
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _numbers(directory: str) -> "list[int]":
    return sorted(int(name) for name in _names(directory) if name.isdecimal())
