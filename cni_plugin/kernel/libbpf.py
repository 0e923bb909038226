"""libbpf.so.1 by ctypes: its prototypes, its errors, and objects loaded with it. Not what is in them.

Loaded on first use; importing ctypes costs 3 ms, and one backend alone needs it.
Prototypes: bpf/bpf.h and bpf/libbpf.h of libbpf 1.0, the oldest of this soname.
"""

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_LOG_BYTES = 1 << 20

_INT, _POINTER, _TEXT, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
U32, _U64 = ctypes.c_uint32, ctypes.c_uint64

# name: (result, arguments). An int result below zero is -errno; a NULL pointer leaves it in errno.
PROTOTYPES: "dict[str, tuple[Any, tuple[Any, ...]]]" = {
    "libbpf_set_print": (_POINTER, (_POINTER,)),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, _POINTER)),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, _U64)),
    "bpf_map_update_batch": (_INT, (_INT, _POINTER, _POINTER, _POINTER, _POINTER)),
    "bpf_map_lookup_elem": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_map_delete_elem": (_INT, (_INT, _POINTER)),
    "bpf_map_get_next_key": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_link_create": (_INT, (_INT, _INT, _INT, _POINTER)),
    "bpf_link_update": (_INT, (_INT, _INT, _POINTER)),
    "bpf_link_detach": (_INT, (_INT,)),
    "bpf_iter_create": (_INT, (_INT,)),
    "bpf_obj_pin": (_INT, (_INT, _TEXT)),
    "bpf_obj_get": (_INT, (_TEXT,)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _POINTER, _POINTER)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "bpf_prog_query": (_INT, (_INT, _INT, U32, _POINTER, _POINTER, _POINTER)),
}


class OpenOptions(ctypes.Structure):
    """`struct bpf_object_open_opts` as libbpf 1.0 has it."""

    _fields_ = (
        ("sz", _SIZE),
        ("object_name", _TEXT),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", _TEXT),
        ("stub", U32),
        ("kconfig", _TEXT),
        ("btf_custom_path", _TEXT),
        ("kernel_log_buf", _POINTER),
        ("kernel_log_size", _SIZE),
        ("kernel_log_level", U32),
    )


class BpfError(OSError):
    """The kernel or libbpf refused; the text says what, then the last lines of the verifier's log."""


_PRINT = ctypes.CFUNCTYPE(_INT, _INT, _TEXT, _POINTER)
_WARN = 0  # enum libbpf_print_level
_said: "list[str]" = []


def _listen(level: int, text: bytes, arguments: int) -> int:
    """Keep what libbpf would print on stderr; its va_list is a pointer to us on every 64-bit ABI."""
    if level == _WARN:
        line = ctypes.create_string_buffer(512)
        ctypes.CDLL(None).vsnprintf(line, 512, _TEXT(text), _POINTER(arguments))
        _said.append(line.value.decode("utf-8", "replace").strip())
    return 0


_print = _PRINT(_listen)  # ctypes does not keep it alive


class _Library:
    """libbpf.so.1 with its prototypes, loaded on first use."""

    loaded: "ctypes.CDLL | None" = None

    def __getattr__(self, name: str) -> "Any":
        if self.loaded is None:
            library = ctypes.CDLL("libbpf.so.1", use_errno=True)
            for function, (result, arguments) in PROTOTYPES.items():
                found = getattr(library, function)
                found.restype, found.argtypes = result, arguments
            library.libbpf_set_print(ctypes.cast(_print, _POINTER))
            _Library.loaded = library
        return getattr(self.loaded, name)


LIBBPF = _Library()


def available() -> None:
    """Raise `OSError` if there is no libbpf here, or one that lacks a function."""
    try:
        LIBBPF.bpf_obj_get  # noqa: B018 - the look-up is the test
    except AttributeError as error:
        raise OSError(f"libbpf is too old: {error}") from None


def done(what: str, result: int) -> int:
    """Return the result of a call that gives -errno on failure. Raises `BpfError`."""
    if result < 0:
        raise BpfError(-result, f"{what}: {os.strerror(-result)}")
    return result


class Object:
    """A compiled object file, loaded; its maps that say so are pinned in `pins`, or taken from there."""

    def __init__(self, path: str, pins: str, constants: "dict[str, bytes] | None" = None) -> None:
        self._log = ctypes.create_string_buffer(_LOG_BYTES)
        options = OpenOptions(
            sz=ctypes.sizeof(OpenOptions),
            pin_root_path=os.fsencode(pins),
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=_LOG_BYTES,
        )
        _said.clear()
        ctypes.set_errno(0)
        self._object = LIBBPF.bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
        if not self._object:
            number = ctypes.get_errno()
            raise BpfError(number, f"{path} cannot be opened: {os.strerror(number)}")
        try:
            for name, value in (constants or {}).items():
                self._set(name, value)
            result = LIBBPF.bpf_object__load(self._object)
            if result < 0:
                words = f"{os.path.basename(path)} cannot be loaded: {os.strerror(-result)}"
                raise BpfError(
                    -result, words + _last_lines(self._log.value) + "".join(f"\n{line}" for line in _said)
                )
        except OSError:
            self.close()
            raise

    def _set(self, map_name: str, value: bytes) -> None:
        size = _SIZE()
        found = LIBBPF.bpf_object__find_map_by_name(self._object, map_name.encode())
        start = LIBBPF.bpf_map__initial_value(found, ctypes.byref(size)) if found else None
        if not start or size.value < len(value):
            raise BpfError(0, f"the object has no {map_name} of {len(value)} bytes")
        ctypes.memmove(start, value, len(value))

    def programs(self) -> "Iterator[tuple[str, int]]":
        """Yield name and file descriptor of each program; the descriptors are the object's."""
        program = None
        while program := LIBBPF.bpf_object__next_program(self._object, program):
            yield LIBBPF.bpf_program__name(program).decode(), LIBBPF.bpf_program__fd(program)

    def close(self) -> None:
        """Free it; what is pinned or attached stays."""
        LIBBPF.bpf_object__close(self._object)


def _last_lines(log: bytes) -> str:
    """Return the end of a verifier's log, the lines that say why first; its statistics are no reason."""
    noise = ("processed ", "verification time", "stack depth", "max_states")
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(noise)]
    return "".join(f"\n{line}" for line in reversed(useful[-20:]))
