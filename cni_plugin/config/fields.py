"""The one table of `Redirection`'s names: as people write them, as the code has them, and their reader.

Not a set of rules of its own: `model.parse` holds those. The netconf's reader, its schema, the
dialects' reader and `explain` all loop over this table.
"""

from cni_plugin.model import parse
from cni_plugin.model.errors import bad_field, no_field
from cni_plugin.model.redirection import ALL_IDS, ALL_PORTS, ANYWHERE, Redirection, Spans, UidExclusion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # Takes the name to use in an error, and the JSON value.
    Reader = Callable[[str, object], object]


def _choice(*allowed: str) -> "Reader":
    return lambda field, value: parse.choice(field, value, allowed)


FIELDS: "dict[str, tuple[str, Reader]]" = {
    "proxyUids": ("proxy_uids", parse.ids),
    "proxyGids": ("proxy_gids", parse.ids),
    "inbound": ("inbound", _choice("redirect", "tproxy", "off")),
    "outbound": ("outbound", _choice("redirect", "off")),
    "inboundPort": ("inbound_port", parse.port),
    "outboundPort": ("outbound_port", parse.port),
    "dnsPort": ("dns_port", parse.port),
    "tunnelPort": ("tunnel_port", parse.tunnel_port),
    "includeInboundPorts": ("include_inbound_ports", parse.ports),
    "excludeInboundPorts": ("exclude_inbound_ports", parse.ports),
    "excludeInboundCidrs": ("exclude_inbound_cidrs", parse.prefixes),
    "includeOutboundPorts": ("include_outbound_ports", parse.ports),
    "excludeOutboundPorts": ("exclude_outbound_ports", parse.ports),
    "excludeOutboundPortsForUids": ("exclude_outbound_ports_for_uids", parse.uid_exclusions),
    "includeOutboundCidrs": ("include_outbound_cidrs", parse.prefixes),
    "excludeOutboundCidrs": ("exclude_outbound_cidrs", parse.prefixes),
    "excludeInterfaces": ("exclude_interfaces", parse.names),
    "virtualInterfaces": ("virtual_interfaces", parse.names),
    "dns": ("dns", parse.servers),
    "dnsProtocols": ("dns_protocols", parse.protocols),
    "dnsAddress": ("dns_address", parse.one_per_family),
    "dropInvalid": ("drop_invalid", parse.boolean),
    "udp443": ("udp443", _choice("pass", "reject")),
    "families": ("families", _choice("auto", "ipv4", "dual")),
    "selfCallsToInbound": ("self_calls_to_inbound", parse.boolean),
    "includeLoopback": ("include_loopback", parse.boolean),
    "loopbackCidrs": ("loopback_cidrs", parse.prefixes),
    "includeOutboundGids": ("include_outbound_gids", parse.ids),
    "excludeOutboundGids": ("exclude_outbound_gids", parse.ids),
    "passthroughSources": ("passthrough_sources", parse.prefixes),
    "tproxyMark": ("tproxy_mark", parse.mark),
    "tproxyTable": ("tproxy_table", parse.table),
}

# What a reader makes of "*".
_EVERYTHING: "dict[Reader, object]" = {parse.ports: ALL_PORTS, parse.ids: ALL_IDS, parse.prefixes: ANYWHERE}


def redirection_fields(where: str, value: object) -> "dict[str, Any]":
    """Return `{snake_case field: parsed value}` for a JSON object in the people's names.

    `where` is the object's own name in errors. Raises `CniError` 7 for a name not in the table.
    """
    if not isinstance(value, dict):
        raise bad_field(where, value, "an object")
    found = {}
    for key, item in value.items():
        if key not in FIELDS:
            raise no_field(where, key, item, FIELDS)
        field, read = FIELDS[key]
        found[field] = read(f"{where}.{key}", item)
    return found


def from_json(where: str, value: object) -> Redirection:
    """Return the redirection that `to_json` printed. Raises `CniError` 7 as `redirection_fields` does."""
    return Redirection(**redirection_fields(where, value))


def to_json(redirection: Redirection) -> "dict[str, object]":
    """Print every field in the people's names and form, so that a netconf could say the same."""
    return {camel: _plain(read, getattr(redirection, field)) for camel, (field, read) in FIELDS.items()}


def _plain(read: "Reader", value: "Any") -> object:
    if not isinstance(value, tuple):
        return value
    if read is parse.servers:
        listed = [parse.address_text(item) for item, _ in value]
        return "off" if not value else "all" if value == ANYWHERE else listed
    if value == _EVERYTHING.get(read):
        return "*"
    if read in (parse.ports, parse.ids):
        return _spans(value)
    if read is parse.prefixes:
        return parse.prefixes_text(value)
    if read is parse.one_per_family:
        return [parse.address_text(item) for item in value]
    if read is parse.uid_exclusions:
        return [_exclusion(item) for item in value]
    return list(value)


def _spans(spans: Spans) -> "list[int | str]":
    return [low if low == high else f"{low}-{high}" for low, high in spans]


def _exclusion(item: UidExclusion) -> "dict[str, object]":
    protocol = item.protocols[0] if len(item.protocols) == 1 else "any"
    uids, ports = _plain(parse.ids, item.uids), _plain(parse.ports, item.ports)
    return {"uids": uids, "ports": ports, "protocol": protocol}
