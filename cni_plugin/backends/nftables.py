"""Backend `nftables`: the rules as one inet table, applied in one nf_tables transaction, no host binary.

Not a rule generator: `rules` says what, this file says it in nf_tables' words, as bytes and as text.
Long because what is sent and what CHECK compares it with are made by the same few functions.
"""

import errno

from cni_plugin.backends import routes
from cni_plugin.backends.common import NO_RECORD, WHY, InNamespace, Unsupported
from cni_plugin.backends.rules import Chain, Rule, Ruleset, Set, Verdict, ruleset
from cni_plugin.kernel import nft
from cni_plugin.kernel.netlink import NetlinkError
from cni_plugin.model.redirection import Redirection

# Never renamed: an upgrade must find what an older version installed.
TABLE = "mesh_redirect"
# Hook priorities of iptables' tables of the same name (linux/netfilter_ipv4.h), so both backends
# see a packet in the same order.
PRIORITY = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0}
_PROTOCOLS = {"tcp": 6, "udp": 17}
# What the kernel says to an expression, a chain type or a subsystem it was not built with.
_LACKS = (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOSYS)


class Nftables(InNamespace):
    """The backend; every method works in the network namespace the process is in."""

    name = "nftables"

    def probe(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Raise `Unsupported` where the kernel has no nf_tables.

        What else it lacks shows in `add`: a transaction refused for a missing expression leaves nothing,
        and a dry run (a batch without its end) costs an RCU grace period on every ADD.
        """
        try:
            nft.available()
        except OSError as error:
            raise Unsupported(f"the kernel has no nf_tables: {error.strerror}") from None

    def add(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Replace what is there in one transaction. Raises `Unsupported` or `OSError`, nothing changed."""
        rules = ruleset(redirection, families)
        undo = routes.add(redirection, families)
        try:
            try:
                _batch(rules).commit()
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise
                _batch(rules, replace=True).commit()
        except BaseException as error:
            undo()
            if isinstance(error, NetlinkError) and error.errno in _LACKS:
                raise Unsupported(f"nf_tables lacks what a rule needs: {error.strerror}") from None
            raise

    def check(self, redirection: Redirection, families: tuple[int, ...]) -> "list[str]":
        """Return what is missing, added or changed, a line each; empty when all is as `add` left it."""
        wanted = _batch(ruleset(redirection, families)).objects()
        try:
            found = nft.dump(TABLE)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            found = []
        if not found:
            return [f"table inet {TABLE} is missing", *routes.check(redirection, families)]
        return _differences(wanted, found) + routes.check(redirection, families)

    def counters(self) -> "dict[str, int]":
        """Return how often each row decided since the last `add`."""
        from cni_plugin.backends import hits  # noqa: PLC0415 - for people, never on the runtime's path

        return hits.tally(nft.counters(TABLE))

    def delete(
        self,
        redirection: Redirection = NO_RECORD,
        kept: Redirection | None = None,
        families: tuple[int, ...] = (),
    ) -> None:
        """Remove everything of ours but the routes that `kept` needs. Raises `OSError`."""
        if nft.exists(TABLE):
            batch = nft.Batch(TABLE)
            # Made first, so that the pair succeeds even if somebody deletes the table meanwhile.
            batch.add_table()
            batch.delete_table()
            batch.commit()
        routes.delete(redirection, kept, families)


def _batch(rules: Ruleset, replace: bool = False) -> nft.Batch:
    """Return the transaction: for a namespace that has none of ours (EEXIST if it has), or to replace it.

    A transaction that deletes waits for RCU, which would cost each ADD 8 ms (measured) instead of 0.6.
    """
    batch = nft.Batch(TABLE)
    if replace:
        batch.add_table()
        batch.delete_table()
    batch.add_table(exclusive=not replace)
    for members in sets(rules):
        keys, intervals = _keys(members)
        batch.add_set(set_name(members), members.kind, intervals, keys)
    for chain in rules.chains:
        batch.add_chain(chain.name, hook_type(chain), chain.hook, PRIORITY[chain.table])
    for chain in rules.chains:
        for rule in chain.rules:
            for expressions in _expressions(rule):
                batch.add_rule(chain.name, expressions, f"{rule.row} {WHY[rule.row]}")
    return batch


def hook_type(chain: Chain) -> str:
    """Return the base chain's type."""
    if chain.table == "nat":
        return "nat"
    # Only a route chain looks the packet's route up again after its mark has changed.
    return "route" if (chain.table, chain.hook) == ("mangle", "output") else "filter"


# -- sets ------------------------------------------------------------------------------------------


def set_name(members: Set) -> str:
    """Return the set's name in the table; a field with addresses of both families has two sets."""
    return f"{members.name}_{members.kind}" if members.kind in ("ipv4", "ipv6") else members.name


def sets(rules: Ruleset) -> "list[Set]":
    """Return the sets that need to exist: those with more than one element, once each."""
    found: dict[str, Set] = {}
    for chain in rules.chains:
        for rule in chain.rules:
            for members in (rule.source, rule.destination, rule.port, rule.uid, rule.gid):
                if members is not None and is_set(members):
                    found[set_name(members)] = members
    return list(found.values())


def is_set(members: Set) -> bool:
    """Tell whether `members` is a set of its own in the table; a single element is in the rule itself."""
    if members.kind in ("uid", "gid"):
        # A range of ids is a rule of its own: ids are hashed, not ordered.
        return len(members.spans) > 1 and all(low == high for low, high in members.spans)
    return len(members.spans) > 1 or len(members.prefixes) > 1


def _keys(members: Set) -> "tuple[list[tuple[bytes, bool]], bool]":
    """Return (key, ends an interval) of each element, and whether the set is one of intervals."""
    if members.kind in ("uid", "gid"):
        return [(low.to_bytes(4, "little"), False) for low, _ in members.spans], False
    if members.kind == "port":
        return _intervals(members.spans, 2), True
    size = len(members.prefixes[0][0])
    ranges = []
    for network, length in members.prefixes:
        low = int.from_bytes(network, "big")
        ranges.append((low, low | ((1 << (size * 8 - length)) - 1)))
    return _intervals(ranges, size), True


def _intervals(
    ranges: "tuple[tuple[int, int], ...] | list[tuple[int, int]]", size: int
) -> "list[tuple[bytes, bool]]":
    """Return start and end keys; an end is the first value past its interval, and neighbours are joined."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    keys = [(bytes(size), True)] if joined[0][0] else []
    for low, high in joined:
        keys.append((low.to_bytes(size, "big"), False))
        if high + 1 < 1 << (size * 8):
            keys.append(((high + 1).to_bytes(size, "big"), True))
    return keys


# -- rules as bytes --------------------------------------------------------------------------------


def _expressions(rule: Rule) -> "list[bytes]":
    """Return the rule's encodings: one, or one for each range of owners, or two for tproxy."""
    before = _packet(rule)
    owners = _owners(nft.META_SKUID, rule.uid) if rule.uid else _owners(nft.META_SKGID, rule.gid)
    return [
        before + owner + _socket_state(rule) + nft.COUNTER + verdict
        for owner in owners
        for verdict in _verdict(rule.verdict)
    ]


def _packet(rule: Rule) -> bytes:
    parts = []
    if rule.iif:
        parts.append(nft.interface(nft.META_IIFNAME, rule.iif))
    if rule.oif:
        parts.append(nft.interface(nft.META_OIFNAME, rule.oif))
    if rule.family:
        parts.append(nft.family(rule.family))
    for members, source in ((rule.source, True), (rule.destination, False)):
        if members is not None:
            parts.append(nft.address_in(members.prefixes, set_name(members), source))
    if rule.protocol:
        parts.append(nft.protocol(_PROTOCOLS[rule.protocol]))
    if rule.port is not None:
        parts.append(nft.port_in(rule.port.spans, set_name(rule.port)))
    if rule.syn:
        parts.append(nft.opens_connection())
    return b"".join(parts)


def _owners(key: int, members: "Set | None") -> "list[bytes]":
    if members is None:
        return [b""]
    if is_set(members):
        return [nft.owner_in_set(key, set_name(members))]
    return [nft.owner_in(key, low, high) for low, high in members.spans]


def _socket_state(rule: Rule) -> bytes:
    parts = []
    if rule.mark:
        parts.append(nft.marked(rule.mark))
    if rule.connmark:
        parts.append(nft.connection_marked(rule.connmark))
    if rule.invalid:
        parts.append(nft.invalid())
    if rule.local_source:
        parts.append(nft.local_address(source=True))
    if rule.local_destination:
        parts.append(nft.local_address(source=False))
    if rule.wildcard:
        parts.append(nft.wildcard())
    if rule.transparent:
        parts.append(nft.transparent())
    return b"".join(parts)


def _verdict(verdict: Verdict) -> "list[bytes]":  # noqa: C901 - a table of the verdicts
    match verdict:
        case ("goto", str(chain)):
            return [nft.verdict("goto", chain)]
        case ("redirect", int(port)):
            return [nft.redirect(port)]
        case ("dnat", bytes(address), int(port)):
            return [nft.dnat(address, port)]
        case ("tproxy", int(port), int(mark)):
            # tproxy does not match when nobody listens; then the client is told at once.
            return [nft.tproxy(port) + nft.set_mark(mark) + nft.verdict("accept"), nft.reject(reset=True)]
        case ("mark", int(mark)):
            return [nft.set_mark(mark)]
        case ("zone", int(zone)):
            return [nft.original_zone(zone)]
        case ("save-mark",):
            return [nft.save_mark()]
        case ("restore-mark",):
            return [nft.restore_mark()]
        case ("reject",):
            return [nft.reject(reset=False)]
        case (str(name),):
            return [nft.verdict(name)]
    raise ValueError(f"no such verdict: {verdict!r}")


# -- comparing -------------------------------------------------------------------------------------


def _differences(wanted: "list[nft.Form]", found: "list[nft.Form]") -> "list[str]":
    missing = _without(wanted, found)
    extra = _without(found, wanted)
    lines = []
    for form in missing:
        twin = next((other for other in extra if nft.label(other) == nft.label(form)), None)
        if twin is not None:
            extra.remove(twin)
        lines.append(f"{nft.label(form)} is {'changed' if twin is not None else 'missing'}")
    lines += [f"{nft.label(form)} is not ours" for form in extra]
    if not lines and [f for f in wanted if f[0] == "rule"] != _in_order(wanted, found):
        lines.append("rules are not in their order")
    return lines


def _in_order(wanted: "list[nft.Form]", found: "list[nft.Form]") -> "list[nft.Form]":
    """Return the rules found, chain by chain in the order of `wanted`: a dump has its own order of chains."""
    chains = [form[1] for form in wanted if form[0] == "chain"]
    rules = [form for form in found if form[0] == "rule"]
    return sorted(rules, key=lambda form: chains.index(form[1]))


def _without(forms: "list[nft.Form]", others: "list[nft.Form]") -> "list[nft.Form]":
    """Return `forms` less one of each of `others`."""
    counts: dict[nft.Form, int] = {}
    for form in others:
        counts[form] = counts.get(form, 0) + 1
    left = []
    for form in forms:
        if counts.get(form, 0):
            counts[form] -= 1
        else:
            left.append(form)
    return left
