"""Dialects from TOML, as people write them, to the plain data that `dialect` reads; checked here, once.

Runs when the package is built (`compile_dialects`) and, in a source tree, when no compiled file is
there: never on the path of an installed plugin, which is why it may import `tomllib`.
Not a reader of pods: it knows which keys a dialect may hold, not what they do to a pod.

A dialect, `dialects/<mesh>.toml`:

- `needs`: which of `kubernetes` (CNI_ARGS names a pod) and `annotations` (the runtime delivers them).
- `reason` and `detail` of the decision when no pass row holds.
- `[defaults]`: fields of the netconf's "redirection" with their values.
- `[always]`: fields whose values are appended whatever the netconf and the pod say.
- `[[pass]]`: the pod passes if `when` holds for `facts`; tried in order. `reason`: a slug of
  `dialect`'s table; `detail`: a sentence. `when`, see `facts.holds`: absent, false, is, lists, lacks; the
  last three compare with `value`.
- `[[set]]`: the first of `facts` that is there is read by `reader` (`readers.READERS`) and merged into
  `field` (`merge`: replace or append). Rows apply in order. The reader `redirection` takes a whole object and
  has no `field`; the reader `choice` has `choices`, a table from text to the field's value.
- `[[derive]]`: `field` becomes `value` if `when` (`readers.DERIVATIONS`) holds for the field `from`.
- `[[unknown]]`: `text` is recorded while `field` (if given) has its default and `when` (if given:
  dual-stack, the pod has addresses of both families) holds.

A fact is written `SOURCE:NAME` or `SOURCE:NAME#KEY.KEY`, the latter a path into the JSON object it holds.
Sources: annotation, CNI_ARGS, args.cni, netconf. A list of facts is an order of preference, so an alias, a
fallback from pod to namespace and a label that beats an annotation are all one rule: the first that is there.
"""

import json
import os
import tomllib

from cni_plugin.config import fields
from cni_plugin.mesh import facts, readers
from cni_plugin.model.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEEDS = ("kubernetes", "annotations")
MERGES = ("replace", "append")

# Keys of each kind of row: (required, optional).
ROWS = {
    "pass": (("facts", "when", "reason", "detail"), ("value",)),
    "set": (("facts", "reader", "merge"), ("field", "choices")),
    "derive": (("field", "value", "from", "when"), ()),
    "unknown": (("text",), ("field", "when")),
}
TABLES = ("needs", "reason", "detail", "defaults", "always", *ROWS)


def compile_dialects(directory: str) -> list[str]:
    """Write `<mesh>.json` beside every `<mesh>.toml` of `directory`; return the files written.

    Raises `ValueError` naming the file and the row for a dialect that is not one.
    """
    written = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".toml"):
            target = os.path.join(directory, name[: -len(".toml")] + ".json")
            dialect = compiled(os.path.join(directory, name))
            draft = f"{target}.{os.getpid()}"
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(dialect, file, separators=(",", ":"))
            os.replace(draft, target)
            written.append(target)
    return written


def compiled(path: str) -> "dict[str, Any]":
    """Return the dialect in the TOML file `path` as `dialect` wants it: every key there, facts split."""
    with open(path, "rb") as file:
        raw = tomllib.load(file)
    _demand(path, set(raw) <= set(TABLES), f"unknown table {', '.join(sorted(set(raw) - set(TABLES)))}")
    _demand(path, {"needs", "reason", "detail"} <= set(raw), "needs, reason and detail are required")
    dialect: dict[str, Any] = {key: raw[key] for key in ("needs", "reason", "detail")}
    _demand(path, set(dialect["needs"]) <= set(NEEDS), f"needs is not among {', '.join(NEEDS)}")
    for table in ("defaults", "always"):
        dialect[table] = raw.get(table, {})
        for field, value in dialect[table].items():
            _field(f"{path}: [{table}]", field)
            _value(f"{path}: [{table}]", field, value)
    for kind in ROWS:
        dialect[kind] = [
            _row(f"{path}: [[{kind}]] {number}", kind, row) for number, row in enumerate(raw.get(kind, []), 1)
        ]
    return dialect


def _row(where: str, kind: str, row: "dict[str, Any]") -> "dict[str, Any]":
    required, optional = ROWS[kind]
    _demand(where, set(required) <= set(row), f"keys {', '.join(required)} are required")
    unknown = set(row) - set(required) - set(optional)
    _demand(where, not unknown, f"unknown key {', '.join(sorted(unknown))}")
    if "field" in row:
        _field(where, row["field"])
    if "facts" in row:
        row["facts"] = [_fact(where, text) for text in row["facts"]]
    if kind == "pass":
        _demand(where, row["when"] in facts.TESTS, f"when is not among {', '.join(facts.TESTS)}")
        comparing = row["when"] in facts.COMPARING
        _demand(where, ("value" in row) == comparing, "value is for is, lists and lacks")
    if kind == "set":
        _set_row(where, row)
    if kind == "derive":
        _field(where, row["from"])
        _demand(where, row["when"] in readers.DERIVATIONS, "when is no known derivation")
        _value(where, row["field"], row["value"])
    if kind == "unknown":
        _demand(where, row.get("when", "dual-stack") == "dual-stack", "when is not dual-stack")
    return row


def _set_row(where: str, row: "dict[str, Any]") -> None:
    whole, choosing = row["reader"] == "redirection", row["reader"] == "choice"
    known = whole or choosing or row["reader"] in readers.READERS
    _demand(where, known, "reader is not in the closed set")
    _demand(where, row["merge"] in MERGES, f"merge is not among {', '.join(MERGES)}")
    _demand(where, ("field" in row) != whole, "field is for every reader but redirection")
    _demand(where, ("choices" in row) == choosing, "choices is for the reader choice")
    for value in row.get("choices", {}).values():
        _value(where, row["field"], value)


def _fact(where: str, text: str) -> "list[Any]":
    source, colon, rest = text.partition(":")
    name, hash_sign, path = rest.partition("#")
    _demand(where, bool(colon and name) and source in facts.SOURCES, f"{text!r} is not SOURCE:NAME#PATH")
    return [source, name, path.split(".") if hash_sign else []]


def _field(where: str, field: str) -> None:
    _demand(where, field in fields.FIELDS, f"{field!r} is no field of a redirection")


def _value(where: str, field: str, value: object) -> None:
    try:
        fields.FIELDS[field][1](f"{where} {field}", value)
    except CniError as error:
        raise ValueError(error.msg) from None


def _demand(where: str, condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(f"{where}: {complaint}")
