"""The effective redirection: defaults, netconf and pod merged, each field with where it came from.

Not a decision: whether the pod is redirected at all is settled before this is asked.
"""

from cni_plugin.config import fields
from cni_plugin.mesh import facts, readers
from cni_plugin.model import parse
from cni_plugin.model.errors import BAD_POD, CniError
from cni_plugin.model.redirection import ALL_PORTS, ANYWHERE, Redirection, effective_families

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUILT_IN = "built-in default"
DIALECT = "dialect default"


class _Fields:
    """The fields so far, by camelCase name: value and origin. The one value that grows while it is built."""

    def __init__(self) -> None:
        default = Redirection()
        self.values: dict[str, Any] = {
            field: getattr(default, name) for field, (name, _) in fields.FIELDS.items()
        }
        self.origins = dict.fromkeys(self.values, BUILT_IN)

    def put(self, field: str, value: object, origin: str) -> None:
        self.values[field] = value
        self.origins[field] = origin

    def append(self, field: str, value: object, origin: str) -> None:
        self.values[field] = readers.union(self.values[field], value)
        self.origins[field] += " + " + origin


def build(
    dialect: "dict[str, Any]",
    known: "dict[str, dict[str, Any]]",
    overrides: "dict[str, Any]",
    addresses: "list[bytes]",
) -> "dict[str, Any]":
    """Return `redirection`, `origins`, `unknown` and `warnings` of the decision.

    `overrides` are the netconf's, by Redirection's own field names. Raises `CniError`, see `dialect.decide`.
    """
    so_far = _Fields()
    for field, value in dialect["defaults"].items():
        so_far.put(field, _parsed(field, value), DIALECT)
    for field, (name, _) in fields.FIELDS.items():
        if name in overrides:
            so_far.put(field, overrides[name], f"netconf redirection.{field}")
    for row in dialect["set"]:
        _set(so_far, row, known)
    for field, value in dialect["always"].items():
        so_far.append(field, _parsed(field, value), "always")
    for row in dialect["derive"]:
        if readers.DERIVATIONS[row["when"]](so_far.values[row["from"]]):
            so_far.put(row["field"], _parsed(row["field"], row["value"]), f"derived from {row['from']}")
    redirection = Redirection(**{name: so_far.values[field] for field, (name, _) in fields.FIELDS.items()})
    _coherent(redirection, so_far.origins)
    return {
        "redirection": redirection,
        "origins": so_far.origins,
        "unknown": _unknown(dialect, so_far.origins, addresses),
        "warnings": _warnings(redirection, addresses),
    }


def _parsed(field: str, value: object) -> object:
    """Read a value that a dialect gives; `compile` has already tried it."""
    return fields.FIELDS[field][1](f"dialect {field}", value)


def _set(so_far: _Fields, row: "dict[str, Any]", known: "dict[str, dict[str, Any]]") -> None:
    found = facts.first(known, row["facts"])
    if found is None:
        return
    put = so_far.append if row["merge"] == "append" else so_far.put
    for field, value in readers.read(row, *found).items():
        put(field, value, facts.label(found[0]))


def _coherent(redirection: Redirection, origins: "dict[str, str]") -> None:
    try:
        parse.coherent(redirection)
    except CniError as error:
        # Without a word from the pod it is the netconf's fault, and the code says so.
        if any("annotation " in origin for origin in origins.values()):
            raise CniError(BAD_POD, error.msg) from None
        raise


def _unknown(
    dialect: "dict[str, Any]", origins: "dict[str, str]", addresses: "list[bytes]"
) -> "tuple[str, ...]":
    # Without addresses both families are programmed, so it matters then too.
    dual_stack = len({len(address) for address in addresses}) != 1
    told = []
    for row in dialect["unknown"]:
        assumed = "field" not in row or origins[row["field"]] in (BUILT_IN, DIALECT)
        if assumed and ("when" not in row or dual_stack):
            told.append(row["text"])
    return tuple(told)


def _warnings(redirection: Redirection, addresses: "list[bytes]") -> "tuple[str, ...]":
    """Say what an operator should know although the pod starts: above all, what bypasses the mesh."""
    told = []
    outbound = redirection.outbound != "off"
    families = effective_families(redirection, addresses)
    sixes = [parse.address_text(address) for address in addresses if len(address) == 16]
    if 6 not in families and sixes:
        told.append(f"this pod's IPv6 ({', '.join(sixes)}) bypasses the mesh: families is ipv4")
    if not outbound and redirection.dns:
        told.append("dns has no effect because outbound is off")
    included = {4 if len(network) == 4 else 6 for network, _ in redirection.include_outbound_cidrs}
    if outbound and included:
        told += [
            f"outbound IPv{family} bypasses the mesh: includeOutboundCidrs has no IPv{family} prefix"
            for family in families
            if family not in included and not redirection.include_outbound_ports
        ]
    excluded = (redirection.exclude_outbound_cidrs, redirection.exclude_outbound_ports)
    if outbound and (excluded[0] == ANYWHERE or excluded[1] == ALL_PORTS):
        told.append("nothing outbound reaches the proxy: everything is excluded")
    if redirection.inbound != "off" and redirection.exclude_inbound_ports == ALL_PORTS:
        told.append("nothing inbound reaches the proxy: every port is excluded")
    if outbound and any(low == 0 for low, _ in redirection.proxy_uids):
        told.append("uid 0 is an owner: every process of root bypasses the mesh")
    return tuple(told)
