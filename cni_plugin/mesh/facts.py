"""Facts: what is known of a pod, and the tests a dialect puts to it.

Not a reader of values: a fact is text or JSON as it came, hostile until `readers` has read it.
"""

from cni_plugin.model import minijson, parse
from cni_plugin.model.errors import BAD_POD, INVALID_ENVIRONMENT, INVALID_NETCONF, CniError, bad_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_plugin.model.request import Netconf

    # (source, name, path into the JSON object that the fact holds), as `compile` splits it.
    Fact = tuple[str, str, list[str]]

# Where a fact comes from, and the code of the error when its value cannot be read: a pod's mistake, the
# environment's, or the netconf's (CNI spec, section 5).
SOURCES = {
    "annotation": BAD_POD,
    "CNI_ARGS": INVALID_ENVIRONMENT,
    "args.cni": INVALID_NETCONF,
    "netconf": INVALID_NETCONF,
}
COMPARING = ("is", "lists", "lacks")
TESTS = ("absent", "false", *COMPARING)


class Missing:
    """The type of `MISSING`: a fact that is not there, as opposed to one that is null."""


MISSING = Missing()


def gather(netconf: "Netconf", args: "dict[str, str]") -> "dict[str, dict[str, Any]]":
    """Return the facts by source and name: `annotation`, `CNI_ARGS`, `args.cni`, `netconf`."""
    return {
        "annotation": netconf.pod_annotations or {},
        "CNI_ARGS": args,
        "args.cni": netconf.cni_args,
        "netconf": {"redirection": netconf.redirection} if netconf.redirection else {},
    }


def label(fact: "Fact") -> str:
    """Return how people call the fact: "annotation NAME", "args.cni NAME.KEY"."""
    source, name, path = fact
    return f"{source} {'.'.join([name, *path])}"


def find(known: "dict[str, dict[str, Any]]", fact: "Fact") -> "Any":
    """Return the fact's value, None if it is null, `MISSING` if it is not there.

    A path into something that is no JSON object is an error of the fact's source.
    """
    source, name, path = fact
    value: Any = known[source].get(name, MISSING)
    for key in path:
        if value is MISSING or value is None:
            return MISSING
        value = as_object(fact, value).get(key, MISSING)
    return value


def as_object(fact: "Fact", value: object) -> "dict[str, Any]":
    """Return the JSON object that `value` is, or that its text holds. Raises the source's error."""
    source, name, _ = fact
    if isinstance(value, str):
        try:
            value = minijson.loads(value.encode())
        except ValueError as error:
            raise bad_field(f"{source} {name}", value, f"a JSON object ({error})", SOURCES[source]) from None
    if not isinstance(value, dict):
        raise bad_field(f"{source} {name}", value, "a JSON object", SOURCES[source])
    return value


def first(known: "dict[str, dict[str, Any]]", wanted: "list[Fact]") -> "tuple[Fact, Any] | None":
    """Return the first of `wanted` that is there and not null, with its value."""
    for fact in wanted:
        value = find(known, fact)
        if value is not MISSING and value is not None:
            return fact, value
    return None


def holds(known: "dict[str, dict[str, Any]]", row: "dict[str, Any]") -> bool:
    """Tell whether `row["when"]` holds for `row["facts"]`.

    absent: none is there. false, is: the first that is there reads as false, or equals `value`.
    lists: one of them, a JSON list or a comma list, holds `value`. lacks: some are there, null counting as an
    empty list, and none holds `value`; nothing there proves nothing.
    """
    test = row["when"]
    if test in ("lists", "lacks"):
        there = [(fact, value) for fact in row["facts"] if (value := find(known, fact)) is not MISSING]
        listed = any(row["value"] in _items(fact, value) for fact, value in there)
        return listed if test == "lists" else bool(there) and not listed
    found = first(known, row["facts"])
    if found is None:
        return bool(test == "absent")
    if test == "is":
        return bool(found[1] == row["value"])
    return bool(test == "false") and not _boolean(*found)


def _items(fact: "Fact", value: object) -> "list[Any]":
    if value is None:
        return []
    if isinstance(value, str):
        return [piece.strip() for piece in value.split(",")]
    if isinstance(value, list):
        return value
    raise bad_field(label(fact), value, "a list of names", SOURCES[fact[0]])


def _boolean(fact: "Fact", value: object) -> bool:
    where = label(fact)
    try:
        return parse.bool_text(where, value) if isinstance(value, str) else parse.boolean(where, value)
    except CniError as error:
        raise CniError(SOURCES[fact[0]], error.msg) from None
