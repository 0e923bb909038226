"""An explanation as text for people: tables, nothing cut off whatever the width.

Not a source of facts: all it prints is in the document that `explain` made.
"""

from tabulate import tabulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def text(document: "dict[str, Any]") -> str:
    """Return the explanation `explain` made, as lines."""
    mesh = f" (mesh {document['mesh']})" if document["mesh"] else ""
    parts = [f"decision  {document['verdict']}: {document['reason']}{mesh}\n          {document['detail']}\n"]
    parts += [_list(title, document[title]) for title in ("unknown", "warnings")]
    if "redirection" in document:
        rows = [
            [field, _value(value), document["origins"].get(field, "")]
            for field, value in document["redirection"].items()
        ]
        families = " and ".join(f"IPv{family}" for family in document["families"])
        parts.append(f"redirection, for {families}\n{_table(rows, ('field', 'value', 'from'))}")
        parts += [f"refused  {name}: {reason}" for name, reason in document["refused"].items()]
        for family, rules in document["rules"].items():
            parts.append(f"rules, {document['backend']} {family}\n{rules}")
    if "live" in document:
        parts += _live(document["live"])
    if document["probes"]:
        rows = [[p["probe"], p["row"] or "-", _outcome(p), p["why"]] for p in document["probes"]]
        parts.append(f"probes\n{_table(rows, ('probe', 'row', 'outcome', 'why'))}")
    return "\n".join(part if part.endswith("\n") else part + "\n" for part in parts if part)


def _live(seen: "dict[str, Any]") -> "list[str]":
    parts = []
    if "policy" in seen:
        told = [[field, _value(value)] for field, value in seen["policy"].items()]
        parts.append(f"told to the programs\n{_table(told, ('field', 'value'))}")
        links = [[str(value) for value in link.values()] for link in seen["links"]]
        parts.append(f"links\n{_table(links, ('hook', 'program', 'attached to', 'link id', 'program id'))}")
    hits = [[hit["row"], hit["what"], str(hit["hits"])] for hit in seen["hits"]]
    table = _table(hits, ("row", "what", "hits")) if hits else "  none since ADD"
    return [*parts, f"hits\n{table}"]


def _list(title: str, items: list[str]) -> str:
    return "".join([f"{title}\n", *(f"  - {item}\n" for item in items)]) if items else ""


def _table(rows: "list[list[str]]", headers: tuple[str, ...]) -> str:
    table: str = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    return table


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={_value(item)}" for key, item in value.items())
    return str(value)


def _outcome(judged: "dict[str, Any]") -> str:
    return f"{judged['action']} to {judged['port']}" if judged["port"] else str(judged["action"])
