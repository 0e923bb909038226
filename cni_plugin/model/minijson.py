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
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name!r} appears twice in one object")
            seen.add(name)
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


class _Context:
    """What `_json.make_scanner` reads its settings from (CPython, Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_unique)
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_no_constant)
    memo: "dict[str, str]" = {}


# The C code reads attributes of any object; the stub would have a scanner here.
_scan = make_scanner(_Context)  # type: ignore[arg-type]


def _reason(text: str, start: int) -> str:
    """Say why `text` is no JSON.

    Before CPython 3.13 the scanner takes its exception from `json.decoder` if that is imported, and sets
    none at all if it is not (Modules/_json.c, raise_errmsg), which becomes a `SystemError`.
    """
    import json.decoder  # noqa: F401, PLC0415 - 8 ms, on this path only

    try:
        _scan(text, start)
    except ValueError as error:
        return str(error)
    return "malformed"


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
    except SystemError:
        raise ValueError(_reason(text, start)) from None
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
