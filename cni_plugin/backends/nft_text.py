"""The nftables backend's rules in nft's own syntax, for people: what `nft list table` will show.

Not what is applied (`nftables` makes bytes); a test feeds this text to nft(8) and compares the two.
"""

from cni_plugin.backends.common import WHY
from cni_plugin.backends.nftables import PRIORITY, TABLE, hook_type, is_set, set_name, sets
from cni_plugin.backends.rules import Chain, Rule, Ruleset, Set, Verdict
from cni_plugin.model.parse import address_text, prefix_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES = {"ipv4": "ipv4_addr", "ipv6": "ipv6_addr", "port": "inet_service", "uid": "uid", "gid": "gid"}


def render(rules: Ruleset) -> str:
    """Return the table as `nft -f` takes it."""
    blocks = [*map(_set, sets(rules)), *map(_chain, rules.chains)]
    return f"table inet {TABLE} {{\n" + "\n".join(blocks) + "}\n"


def _set(members: Set) -> str:
    flags = "" if members.kind in ("uid", "gid") else "\t\tflags interval\n\t\tauto-merge\n"
    listed = ", ".join(_elements(members))
    return (
        f"\tset {set_name(members)} {{\n\t\ttype {_TYPES[members.kind]}\n{flags}"
        f"\t\telements = {{ {listed} }}\n\t}}\n"
    )


def _elements(members: Set) -> "Iterator[str]":
    for prefix in members.prefixes:
        host = prefix[1] == len(prefix[0]) * 8
        yield address_text(prefix[0]) if host else prefix_text(prefix)
    for low, high in members.spans:
        yield str(low) if low == high else f"{low}-{high}"


def _chain(chain: Chain) -> str:
    head = ""
    if chain.hook:
        kind, priority = hook_type(chain), PRIORITY[chain.table]
        head = f"\t\ttype {kind} hook {chain.hook} priority {priority}; policy accept;\n"
    body = "".join(f"\t\t{line}\n" for rule in chain.rules for line in _rule(rule))
    return f"\tchain {chain.name} {{\n{head}{body}\t}}\n"


def _rule(rule: Rule) -> "Iterator[str]":
    owners = _owners("skuid", rule.uid) if rule.uid else _owners("skgid", rule.gid)
    for owner in owners:
        for verdict in _verdict(rule.verdict):
            words = [*_packet(rule), owner, *_socket_state(rule), "counter", verdict]
            yield " ".join(word for word in [*words, f'comment "{rule.row} {WHY[rule.row]}"'] if word)


def _packet(rule: Rule) -> "Iterator[str]":
    for key, name in (("iifname", rule.iif), ("oifname", rule.oif)):
        if name and name != "+":
            yield f'{key} "{name[:-1]}*"' if name.endswith("+") else f'{key} "{name}"'
    ip = "ip6" if rule.family == 6 else "ip"
    if rule.family and rule.source is None and rule.destination is None:
        yield f"meta nfproto ipv{rule.family}"
    for key, members in ((f"{ip} saddr", rule.source), (f"{ip} daddr", rule.destination)):
        if members is not None:
            yield f"{key} {_one_of(members)}"
    if rule.port is not None:
        yield f"{rule.protocol} dport {_one_of(rule.port)}"
    elif rule.protocol:
        yield f"meta l4proto {rule.protocol}"
    if rule.syn:
        yield "tcp flags & (fin | syn | rst | ack) == syn"


def _one_of(members: Set) -> str:
    return f"@{set_name(members)}" if is_set(members) else next(_elements(members))


def _owners(key: str, members: Set | None) -> "list[str]":
    if members is None:
        return [""]
    if is_set(members):
        return [f"meta {key} @{set_name(members)}"]
    return [f"meta {key} {element}" for element in _elements(members)]


def _socket_state(rule: Rule) -> "Iterator[str]":
    if rule.mark:
        yield f"meta mark {rule.mark:#x}"
    if rule.connmark:
        yield f"ct mark {rule.connmark:#x}"
    if rule.invalid:
        yield "ct state invalid"
    if rule.local_source:
        yield "fib saddr type local"
    if rule.local_destination:
        yield "fib daddr type local"
    if rule.wildcard:
        yield "socket wildcard 1"
    if rule.transparent:
        yield "socket transparent 1"


def _verdict(verdict: Verdict) -> "list[str]":  # noqa: C901 - a table of the verdicts
    match verdict:
        case ("goto", str(chain)):
            return [f"goto {chain}"]
        case ("redirect", int(port)):
            return [f"redirect to :{port}"]
        case ("dnat", bytes(address), int(port)):
            text = address_text(address)
            return [f"dnat ip to {text}:{port}" if len(address) == 4 else f"dnat ip6 to [{text}]:{port}"]
        case ("tproxy", int(port), int(mark)):
            return [f"tproxy to :{port} meta mark set {mark:#x} accept", "reject with tcp reset"]
        case ("mark", int(mark)):
            return [f"meta mark set {mark:#x}"]
        case ("zone", int(zone)):
            return [f"ct original zone set {zone}"]
        case ("save-mark",):
            return ["ct mark set meta mark"]
        case ("restore-mark",):
            return ["meta mark set ct mark"]
        case ("reject",):
            return ["reject with icmpx port-unreachable"]
        case (str(name),):
            return [name]
    raise ValueError(f"no such verdict: {verdict!r}")
