"""What bpf(2) does, through libbpf: pins, maps, links, iterators. What a program means is not known here.

Constants: linux/bpf.h.
"""

import ctypes
import os

from cni_plugin.kernel.libbpf import LIBBPF, U32, done

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ANY, NOEXIST = 0, 1
ALLOW_MULTI = 2
_QUERY_EFFECTIVE = 1

# enum bpf_attach_type, by the name of the hook.
ATTACH = {
    "sockops": 3,
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
    "getsockopt": 21,
    "iter": 28,
    "getpeername4": 29,
    "getpeername6": 30,
    "sk_lookup": 36,
}


def filesystem(path: str) -> int:
    """Return the magic number of the filesystem at `path` (statfs(2), first word). Raises `OSError`."""
    found = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{path}: {os.strerror(number)}")
    return found[0]


# -- pins ------------------------------------------------------------------------------------------


def pin(fd: int, path: str) -> None:
    """Give the object `fd` a name in a bpffs. Raises `BpfError`."""
    done(f"pin {path}", LIBBPF.bpf_obj_pin(fd, os.fsencode(path)))


def pinned(path: str) -> int:
    """Return a new descriptor of the object pinned at `path`. Raises `BpfError`."""
    return done(f"open pin {path}", LIBBPF.bpf_obj_get(os.fsencode(path)))


def identity(fd: int, words: int = 2) -> "tuple[int, ...]":
    """Return the first words of the object's info: type and id, and of a link its program and more."""
    info = (U32 * words)()
    size = U32(ctypes.sizeof(info))
    done("object info", LIBBPF.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)))
    return tuple(info)


def cpus() -> int:
    """Return how many CPUs a per-CPU map has values of."""
    return done("count CPUs", LIBBPF.libbpf_num_possible_cpus())


# -- maps ------------------------------------------------------------------------------------------


class Map:
    """A map's descriptor with its sizes; keys and values are bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd, self.key_size, self.value_size = fd, key_size, value_size

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set one element. Raises `BpfError`."""
        done("map update", LIBBPF.bpf_map_update_elem(self.fd, key, value, flags))

    def fill(self, elements: "dict[bytes, bytes]") -> None:
        """Set many elements in one call. Raises `BpfError`."""
        count = U32(len(elements))
        keys, values = b"".join(elements), b"".join(elements.values())
        if elements:
            result = LIBBPF.bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None)
            done(f"map update, element {count.value} of {len(elements)}", result)

    def get(self, key: bytes) -> "bytes | None":
        """Return the value, or None. Raises `BpfError`."""
        value = ctypes.create_string_buffer(self.value_size)
        result = LIBBPF.bpf_map_lookup_elem(self.fd, key, value)
        if result == -2:  # ENOENT
            return None
        done("map lookup", result)
        return value.raw

    def remove(self, key: bytes) -> bool:
        """Remove the element; tell whether it was there. Raises `BpfError`."""
        result = LIBBPF.bpf_map_delete_elem(self.fd, key)
        if result in (-2, -22):  # ENOENT; EINVAL: a socket map's word for it
            return False
        done("map delete", result)
        return True

    def walk(self, after: "bytes | None" = None) -> "Iterator[bytes]":
        """Yield the keys in the map's order, all or those after one."""
        key = after
        found = ctypes.create_string_buffer(self.key_size)
        while LIBBPF.bpf_map_get_next_key(self.fd, key, found) == 0:
            key = found.raw
            yield key


# -- links -----------------------------------------------------------------------------------------


def link(program: int, target: int, hook: str) -> int:
    """Attach a program to a cgroup or a netns (their descriptors); return the link's. Raises `BpfError`."""
    return done(f"attach {hook}", LIBBPF.bpf_link_create(program, target, ATTACH[hook], None))


def update_link(fd: int, program: int) -> None:
    """Replace the program of a link without a gap. Raises `BpfError`, ENOLINK if its target is gone."""
    done("link update", LIBBPF.bpf_link_update(fd, program, None))


def detach(fd: int) -> None:
    """Take a link off its target, if that is there, before this returns. Raises `BpfError`."""
    done("link detach", LIBBPF.bpf_link_detach(fd))


def iterate(program: int) -> None:
    """Run an iterator once, in the netns this process is in. Raises `OSError`."""
    attached = link(program, 0, "iter")
    try:
        run = done("iterate", LIBBPF.bpf_iter_create(attached))
        try:
            while os.read(run, 4096):
                pass
        finally:
            os.close(run)
    finally:
        os.close(attached)


def attached(target: int, hook: str, effective: bool = True) -> "tuple[int, list[int]]":
    """Return the attach flags, and the ids of the programs that run there in their order.

    Without `effective` only those attached to this very cgroup. Raises `BpfError`.
    """
    flags, count, ids = U32(), U32(64 * 8), (U32 * (64 * 8))()
    # The flags mean something only for what is attached right here.
    asked = _QUERY_EFFECTIVE if effective else 0
    result = LIBBPF.bpf_prog_query(target, ATTACH[hook], asked, ctypes.byref(flags), ids, ctypes.byref(count))
    done(f"query {hook}", result)
    return flags.value, list(ids[: count.value])


def close_all(fds: "Iterable[int]") -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
