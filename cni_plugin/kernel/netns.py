"""Entering the sandbox's network namespace, and its user namespace. Nothing is done in there by this file.

The process must have one thread: setns(2) moves the calling thread only.
"""

import _socket
import errno
import os
from _struct import unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

CLONE_NEWNET = 0x40000000  # linux/sched.h
CLONE_NEWUSER = 0x10000000
_NS_GET_USERNS = 0xB701  # linux/nsfs.h, _IO(0xb7, 0x1)
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_OWN = "/proc/self/ns/net"
# open(2) of a path that is gone or never was one; EINVAL: setns(2), a file that is no namespace.
_NO_NAMESPACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.EINVAL)


class EnterFailed(OSError):
    """A network namespace could not be entered; `gone`: there is none at that path (any more)."""

    @property
    def gone(self) -> bool:
        """Tell whether it is the path's fault, and not the kernel's."""
        return self.errno in _NO_NAMESPACE


def setns(fd: int, kind: int) -> None:
    """Move this process into the namespace `fd`; raises `OSError`. Python has it from 3.12 on."""
    if hasattr(os, "setns"):
        os.setns(fd, kind)
    else:
        _libc_call("setns", fd, kind)


def unshare(kind: int) -> None:
    """Move this process into a new namespace of `kind`; raises `OSError`. Python has it from 3.12 on."""
    if hasattr(os, "unshare"):
        os.unshare(kind)
    else:
        _libc_call("unshare", kind)


def _libc_call(name: str, *arguments: int) -> None:
    # Python 3.11. The C half of ctypes calls without the 3 ms of the Python half, but keeps no errno.
    import _ctypes  # noqa: PLC0415

    this_process = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    if _ctypes.call_function(_ctypes.dlsym(this_process, name), arguments) != 0:
        import ctypes  # noqa: PLC0415

        libc = ctypes.CDLL(None, use_errno=True)
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")


def _open(path: str) -> int:
    # O_NONBLOCK: a path that is a FIFO must not hang the plugin.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


class entered:  # noqa: N801 - read as `with entered(path):`
    """Be in the network namespace at `path`, and come back.

    Raises `EnterFailed`: ENOENT if there is no such path, EINVAL if it is not a network namespace.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> "Self":
        self._home = _open(_OWN)
        try:
            there = _open(self._path)
            try:
                setns(there, CLONE_NEWNET)
            finally:
                os.close(there)
        except OSError as error:
            os.close(self._home)
            raise EnterFailed(error.errno, error.strerror) from None
        return self

    def __exit__(self, *_: object) -> None:
        setns(self._home, CLONE_NEWNET)
        os.close(self._home)


def is_own(path: str) -> bool:
    """Tell whether `path` is the network namespace the process is in already; False if it is none."""
    try:
        mine, theirs = os.stat(_OWN), os.stat(path)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)


def cookie() -> int:
    """Return the cookie of the namespace we are in: unique per boot, never reused (0: kernel < 5.14)."""
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        value: int = unpack("=Q", probe.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        return value
    except OSError:
        return 0
    finally:
        probe.close()


def enter_owning_user_namespace() -> None:
    """Enter the user namespace that owns the network namespace we are in, if it is not ours already.

    xt_owner takes ids only from a writer in that namespace (net/netfilter/xt_owner.c, owner_check).
    There is no way back: for a child that is about to exec. Raises `OSError`.
    """
    owner = owning_user_namespace()
    if owner is not None:
        setns(owner, CLONE_NEWUSER)
        os.close(owner)
        # Root of that namespace, else the tools take us for an ordinary user.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def owning_user_namespace() -> "int | None":
    """Return a descriptor of the user namespace that owns our network namespace; None if it is ours."""
    import fcntl  # noqa: PLC0415 - only where a user namespace matters

    net = _open(_OWN)
    try:
        owner = fcntl.ioctl(net, _NS_GET_USERNS)
    finally:
        os.close(net)
    mine, theirs = os.stat("/proc/self/ns/user"), os.fstat(owner)
    if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
        os.close(owner)
        return None
    return owner
