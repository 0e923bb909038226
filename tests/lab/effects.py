"""What is in a network namespace, as other people's tools list it: never our own reader."""

import json
from typing import Any

from tests.lab.namespace import Namespace

# Of the listings, what no rule is: handles and versions of nft, counters and dates of iptables-save.
NOT_RULES = ("metainfo",)


def nft(namespace: Namespace) -> list[Any]:
    """Return `nft -j list ruleset` without handles."""
    listed = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    return [_without_handles(entry) for entry in listed if not any(key in entry for key in NOT_RULES)]


def _without_handles(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _without_handles(value) for key, value in entry.items() if key != "handle"}
    if isinstance(entry, list):
        return [_without_handles(value) for value in entry]
    return entry


def iptables(namespace: Namespace) -> list[str]:
    """Return the rules and own chains of all legacy tables of both families; an empty built-in chain is nothing."""
    lines = []
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        table = ""
        for line in namespace.run(tool).splitlines():
            if line.startswith("*"):
                table = line
            elif line.startswith("-") or (line.startswith(":") and " ACCEPT " not in line):
                lines.append(f"{tool} {table} {line}")
    return lines


def routing(namespace: Namespace) -> list[str]:
    """Return policy rules, every route of every table, and the addresses, of both families."""
    lines = []
    for version in ("-4", "-6"):
        for what in (("rule",), ("route", "show", "table", "all"), ("addr",)):
            listed = namespace.run("ip", version, "-o", *what, "show") if len(what) == 1 else namespace.run("ip", version, *what)
            lines += [f"{version} {line.strip()}" for line in listed.splitlines()]
    return sorted(lines)


def everything(namespace: Namespace) -> dict[str, Any]:
    """Return all of the above."""
    return {"nft": nft(namespace), "iptables": iptables(namespace), "routing": routing(namespace)}
