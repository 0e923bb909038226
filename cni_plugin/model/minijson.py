"""JSON through the C scanner and encoder alone: `import json` pulls in `re` and costs 8 ms.

Stricter than `json`: NaN, Infinity, duplicate keys and anything after the value are refused.
"""

from _json import encode_basestring, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACE = " \t\n\r"


def _unique(pairs: "list[tuple[str, Any]]") -> "dict[str, Any]":
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _Context:
    """What `_json.make_scanner` reads its settings from (CPython, Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_unique)
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_constant)
    memo: "dict[str, str]" = {}


# The C code reads attributes of any object; the stub would have a scanner here.
_scan = make_scanner(_Context)  # type: ignore[arg-type]


def loads(data: bytes) -> "Any":
    """Parse one JSON value from UTF-8 `data`. Raises `ValueError` with the reason and place."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    start, end = 0, len(text)
    while start < end and text[start] in _SPACE:
        start += 1
    try:
        value, stop = _scan(text, start)
    except StopIteration as error:
        raise ValueError(f"a JSON value was expected at character {error.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    while stop < end and text[stop] in _SPACE:
        stop += 1
    if stop != end:
        raise ValueError(f"extra text after the JSON value at character {stop}")
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON")


def dumps(value: object) -> str:
    """Print `value` as compact JSON, keys in insertion order."""
    encoder = make_encoder({}, _refuse, encode_basestring, None, ":", ",", False, False, False)
    return "".join(encoder(value, 0))
