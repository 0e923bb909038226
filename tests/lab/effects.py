"""What is in a network namespace, as other people's tools list it: never our own reader."""

import json
from typing import Any

from tests.lab.namespace import Namespace

# What differs between two listings of the same rules.
VOLATILE = ("handle", "packets", "bytes")


def nft(namespace: Namespace) -> list[Any]:
    """Return `nft -j list ruleset` without handles and counts."""
    listed = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    return [_stable(entry) for entry in listed if "metainfo" not in entry]


def _stable(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _stable(value) for key, value in entry.items() if key not in VOLATILE}
    if isinstance(entry, list):
        return [_stable(value) for value in entry]
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
    listings = (("rule",), ("route", "show", "table", "all"), ("-o", "addr"))
    lines = [
        f"{version} {line.strip()}"
        for version in ("-4", "-6")
        for listing in listings
        for line in namespace.run("ip", version, *listing).splitlines()
    ]
    return sorted(lines)


def everything(namespace: Namespace) -> dict[str, Any]:
    """Return all of the above."""
    return {"nft": nft(namespace), "iptables": iptables(namespace), "routing": routing(namespace)}
