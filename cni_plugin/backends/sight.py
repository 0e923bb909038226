"""What eBPF holds of one sandbox, for people: its policy read back from the maps, its links, their programs.

Not for the plugin's path, and nothing is changed. Ids are the machine's, as the programs see them.
"""

import os
from _struct import unpack

from cni_plugin.backends import pins, policy
from cni_plugin.backends.maps import Maps
from cni_plugin.backends.policy import Policy
from cni_plugin.kernel import bpf, cgroup, netns, network
from cni_plugin.model import parse
from cni_plugin.model.redirection import ALL_IDS, ALL_PORTS, ANYWHERE, Prefixes, Spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # Number or address, its length in bits, and what is known of it.
    Known = tuple[bytes, int, int, int]

_MAPPED = policy.address(bytes(4))[:12]
_BYTES = {policy.PORT: 2, policy.UID: 4, policy.GID: 4, policy.INTERFACE: 4}
_SPANS = {
    "proxyUids": (policy.UID, policy.PROXY),
    "proxyGids": (policy.GID, policy.PROXY),
    "includeInboundPorts": (policy.PORT, policy.INCLUDE_IN),
    "excludeInboundPorts": (policy.PORT, policy.EXCLUDE_IN),
    "includeOutboundPorts": (policy.PORT, policy.INCLUDE_OUT),
    "excludeOutboundPorts": (policy.PORT, policy.EXCLUDE_OUT),
    "includeOutboundGids": (policy.GID, policy.INCLUDE_OUT),
    "excludeOutboundGids": (policy.GID, policy.EXCLUDE_OUT),
}
_PREFIXES = {
    "excludeInboundCidrs": policy.EXCLUDE_IN,
    "includeOutboundCidrs": policy.INCLUDE_OUT,
    "excludeOutboundCidrs": policy.EXCLUDE_OUT,
    "loopbackCidrs": policy.LOOPBACK_CIDR,
    "passthroughSources": policy.PASSTHROUGH,
    "dns": policy.DNS_SERVER,
    "staysOnLoopback": policy.STAYS,
    "leavesByExcluded": policy.BY_EXCLUDED,
}


def sight(bpffs: str) -> "dict[str, Any] | None":
    """Return policy and links of the sandbox the process is in, or None if it has none. Raises `OSError`."""
    tree = pins.Pins(bpffs)
    if not tree.is_used():
        return None
    cookie = netns.cookie()
    with Maps(tree) as maps:
        found = maps.policy(cookie)
        if found is None:
            return None
        facts = maps.facts(cookie, found.generation)
    names = network.read().interfaces
    return {"policy": decoded(found, facts, names), "links": _links(tree, found)}


# -- policy ----------------------------------------------------------------------------------------


def decoded(found: Policy, facts: "dict[bytes, bytes]", names: "dict[int, str]") -> "dict[str, Any]":
    """Return what the programs are told in a redirection's words, and what they are told beside it.

    `names` are the sandbox's interfaces by index.
    """
    known: dict[int, list[Known]] = {kind: [] for kind in range(1, 6)}
    for key, value in facts.items():
        length, _, kind, data = unpack(policy.FACT_KEY, key)
        exclusions, bits, _ = unpack(policy.FACT, value)
        known[kind[3]].append((data, length - policy.KIND_BITS, bits, exclusions))
    told: dict[str, Any] = _switches(found)
    for field, (kind, bit) in _SPANS.items():
        told[field] = _spans_text(kind, _spans(kind, known[kind], bits=bit))
    if found.flags & policy.ALL_GIDS:
        told["includeOutboundGids"] = "*"
    told["excludeOutboundPortsForUids"] = _exclusions(found, known)
    for field, bit in _PREFIXES.items():
        prefixes = _prefixes(known[policy.ADDRESS], bit)
        told[field] = "*" if prefixes == ANYWHERE else parse.prefixes_text(prefixes)
    indexes = (int.from_bytes(data[:4], "big") for data, *_ in known[policy.INTERFACE])
    told["excludeInterfaces"] = [names.get(index, str(index)) for index in sorted(indexes)]
    return told


def _switches(found: Policy) -> "dict[str, Any]":
    flags = found.flags
    inbound = "tproxy" if flags & policy.TPROXY else "redirect"
    protocols = (("udp", policy.DNS_UDP), ("tcp", policy.DNS_TCP))
    return {
        "cookie": found.cookie,
        "generation": found.generation,
        "families": [family for family, on in ((4, policy.ON_IPV4), (6, policy.ON_IPV6)) if flags & on],
        "inbound": inbound if flags & policy.ON_INBOUND else "off",
        "inboundPort": found.inbound_port,
        "outbound": "redirect" if flags & policy.ON_OUTBOUND else "off",
        "outboundPort": found.outbound_port,
        "tunnelPort": found.tunnel_port,
        "tproxyMark": found.tproxy_mark,
        "selfCallsToInbound": bool(flags & policy.SELF_CALLS),
        "includeLoopback": bool(flags & policy.INCLUDE_LOOPBACK),
        "udp443": "reject" if flags & policy.REJECT_QUIC else "pass",
        "dnsProtocols": [name for name, on in protocols if flags & on],
        "dnsPort": found.dns_port,
        "dnsAddress": [parse.address_text(found.dns4[12:]), parse.address_text(found.dns6)],
    }


def _spans(kind: int, known: "list[Known]", bits: int = 0, exclusions: int = 0) -> Spans:
    """Return the numbers that have one of `bits`, or one of `exclusions`."""
    width = 8 * _BYTES[kind]
    found = []
    for data, length, has, rules in known:
        if has & bits or rules & exclusions:
            low = int.from_bytes(data[: _BYTES[kind]], "big")
            found.append((low, low + (1 << (width - length)) - 1))
    return parse.merged(found)


def _spans_text(kind: int, spans: Spans) -> "str | list[int | str]":
    if spans == (ALL_PORTS if kind == policy.PORT else ALL_IDS):
        return "*"
    return [low if low == high else f"{low}-{high}" for low, high in spans]


def _exclusions(found: Policy, known: "dict[int, list[Known]]") -> "list[dict[str, Any]]":
    rules = []
    for number in range(policy.EXCLUSIONS):
        bit = 1 << number
        protocols = [
            name for name, of in (("tcp", found.tcp_exclusions), ("udp", found.udp_exclusions)) if of & bit
        ]
        if protocols:
            rules.append(
                {
                    "uids": _spans_text(policy.UID, _spans(policy.UID, known[policy.UID], exclusions=bit)),
                    "ports": _spans_text(
                        policy.PORT, _spans(policy.PORT, known[policy.PORT], exclusions=bit)
                    ),
                    "protocol": protocols[0] if len(protocols) == 1 else "any",
                }
            )
    return rules


def _prefixes(known: "list[Known]", bit: int) -> Prefixes:
    """Return the outermost prefixes that have `bit`: those inside them have it from them."""
    found = []
    for data, length, bits, _ in known:
        if bits & bit:
            mapped = length >= 96 and data[:12] == _MAPPED
            found.append((data[12:], length - 96) if mapped else (data, length))
    return parse.disjoint(found)


# -- links -----------------------------------------------------------------------------------------


def _links(tree: pins.Pins, found: Policy) -> "list[dict[str, Any]]":
    """Return the links that serve the sandbox, in the order they were made."""
    rows = []
    if tree.has_links(found.cgroup):
        where = f"cgroup {_path_of(found.cgroup) or found.cgroup}"
        for name, hook in pins.ATTACHED.items():
            rows.append(_link(bpf.pinned(f"{tree.top}/cgroups/{found.cgroup}/{name}"), hook, name, where))
    if tree.has_inbound(found.cookie):
        rows.append(_link(tree.inbound(found.cookie), "sk_lookup", "inbound", f"netns {found.cookie}"))
    return rows


def _link(link: int, hook: str, name: str, where: str) -> "dict[str, Any]":
    """Return a link in words; its descriptor is closed."""
    try:
        _, number, program = bpf.identity(link, 3)
    finally:
        os.close(link)
    return {"hook": hook, "program": name, "attachedTo": where, "linkId": number, "programId": program}


def _path_of(number: int) -> str:
    """Return the path of the cgroup with this id, or "" if there is none."""
    for directory, _, _ in os.walk(cgroup.mount()):
        try:
            if cgroup.identity(directory) == number:
                return directory
        except OSError:
            continue  # gone while we looked
    return ""
