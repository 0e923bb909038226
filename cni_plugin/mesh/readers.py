"""The closed set of readers and derivations that a dialect's rows may name.

Two readers are not in `READERS`, as they need more than text: `choice` its choices, `redirection` an object.

Not a parser: `model.parse` says what a value means; a reader says in which form a row's text is written.
"""

from cni_plugin.config import fields
from cni_plugin.mesh import facts
from cni_plugin.model import parse
from cni_plugin.model.errors import CniError, bad_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_plugin.mesh.facts import Fact
    from cni_plugin.model.redirection import Prefixes


def read(row: "dict[str, Any]", fact: "Fact", value: object) -> "dict[str, Any]":
    """Return the camelCase fields that `value` sets by `row`, with their values.

    Raises `CniError` with the code of the fact's source, naming the fact, its value and what was expected.
    """
    try:
        if row["reader"] == "redirection":
            return _redirection(fact, value)
        if not isinstance(value, str):
            raise bad_field(facts.label(fact), value, "text")
        where, choices = facts.label(fact), row.get("choices")
        if choices is not None:
            return {row["field"]: choices[parse.choice(where, value, tuple(choices))]}
        return {row["field"]: READERS[row["reader"]](where, value)}
    except CniError as error:
        raise CniError(facts.SOURCES[fact[0]], error.msg) from None


def _redirection(fact: "Fact", value: object) -> "dict[str, Any]":
    snake = fields.redirection_fields(facts.label(fact), facts.as_object(fact, value))
    return {camel: snake[name] for camel, (name, _) in fields.FIELDS.items() if name in snake}


READERS: "dict[str, Callable[[str, str], object]]" = {
    "ports": parse.port_list,
    "cidrs": parse.prefix_list,
    "names": parse.name_list,
}


def union(old: "Any", new: "Any") -> "Any":
    """Return two sets of spans, of prefixes or of names as one; what they are is seen in their items."""
    together = [*old, *new]
    if not together or isinstance(together[0], str):
        return tuple(dict.fromkeys(together))
    if isinstance(together[0][0], bytes):
        return parse.disjoint(together)
    return parse.merged(together)


def _holds_loopback(prefixes: "Prefixes") -> bool:
    """Tell whether a prefix lies in 127.0.0.0/8 or is ::1/128; "*" is not a loopback range."""
    return any(
        prefix == (bytes(15) + b"\1", 128) or (len(prefix[0]) == 4 and prefix[0][0] == 127 and prefix[1] >= 8)
        for prefix in prefixes
    )


DERIVATIONS: "dict[str, Callable[[Any], bool]]" = {"holds-loopback": _holds_loopback}
