"""The contract as firewall rules, made as one value: what nftables and iptables both install.

A `Ruleset` is printed by `explain`, applied by the backends and compared by CHECK. Nothing is applied here,
and no syntax of either backend is known here.

Long because it is the whole table, inbound and outbound, in one place: each row of the contract is one rule
(or a few), in the order of the table, and splitting the table would hide the order.

How the rows become chains:

    nat_prerouting     I1-I5, redirect mode; interfaces of guests go on to `guest`
    nat_output         O1-O3, then by owner: the proxy to `proxy` (O4, O5), the rest to `captured` (O6-O11)
    mangle_prerouting  drop_invalid, and I1-I5 in tproxy mode
    mangle_output      tproxy mode: O4 by mark, and the way back of connections the proxy made as its client
    raw_output         the conntrack zone of captured DNS
    filter_output      udp443 = reject; filter_forward is the same for guests
"""

from cni_plugin.model.redirection import (
    ALL_IDS,
    ALL_PORTS,
    LOOPBACK,
    Prefixes,
    Redirection,
    Spans,
    UidExclusion,
)
from cni_plugin.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

Verdict = tuple[str | int | bytes, ...]

RETURN: Verdict = ("return",)
DROP: Verdict = ("drop",)
REJECT: Verdict = ("reject",)
SAVE_MARK: Verdict = ("save-mark",)
RESTORE_MARK: Verdict = ("restore-mark",)

# The zone of captured DNS over UDP, in the original direction only. A client's source port may still be in
# conntrack from the proxy's own query to the same server; in a zone of its own it is a new connection and is
# redirected. Answers and ICMP errors stay in zone 0 and need no rule: the reply tuple is looked up there.
DNS_ZONE = 2
DNS = 53
HTTPS = 443


class Set(Value):
    """Elements a packet's field is compared with; `name` is the Redirection field they come from.

    `kind` is port, uid, gid (elements: spans), ipv4 or ipv6 (elements: prefixes of that family).
    """

    name: str
    kind: str
    spans: Spans = ()
    prefixes: Prefixes = ()


class Rule(Value):
    """One rule: every condition given must hold, then the verdict. `row` is the row of the contract."""

    row: str
    verdict: Verdict
    family: int = 0  # 4, 6, or 0 for both
    iif: str = ""
    oif: str = ""
    protocol: str = ""  # tcp | udp
    syn: bool = False  # opens a TCP connection: connections older than the redirection are left alone
    source: Set | None = None
    destination: Set | None = None
    port: Set | None = None  # destination port
    uid: Set | None = None
    gid: Set | None = None
    mark: int = 0
    connmark: int = 0
    invalid: bool = False
    transparent: bool = False  # belongs to a transparent socket
    wildcard: bool = False  # belongs to a listener on all addresses, which xt_socket never finds
    local_source: bool = False
    local_destination: bool = False


class Chain(Value):
    """Rules in order. `hook` is empty for a chain that is only gone to; falling off the end is RETURN."""

    name: str
    table: str  # raw | mangle | nat | filter
    hook: str  # prerouting | input | forward | output | ""
    rules: tuple[Rule, ...]


class Ruleset(Value):
    """All chains of a redirection, and the IP versions they are for."""

    families: tuple[int, ...]
    chains: tuple[Chain, ...]


def ruleset(redirection: Redirection, families: tuple[int, ...]) -> Ruleset:
    """Return the rules that make `redirection` true for `families`, (4,), (6,) or (4, 6)."""
    plan = _Plan(redirection, families)
    chains = (*plan.raw(), *plan.mangle(), *plan.filter(), *plan.nat())
    return Ruleset(families=families, chains=tuple(chain for chain in chains if chain.rules))


def self_mark(redirection: Redirection) -> int:
    """Return the mark of the proxy's calls to its own pod in tproxy mode (row O4)."""
    return redirection.tproxy_mark + 1


def _ports(name: str, spans: Spans) -> Set | None:
    return None if spans == ALL_PORTS else Set(name=name, kind="port", spans=spans)


def _single(name: str, number: int) -> Set:
    return Set(name=name, kind="port", spans=((number, number),))


def _ids(name: str, kind: str, spans: Spans) -> Set | None:
    return None if spans == ALL_IDS else Set(name=name, kind=kind, spans=spans)


class _Plan:
    """Builds the chains of one redirection."""

    def __init__(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        self.r = redirection
        self.families = families

    # -- conditions that may hold for several rules ------------------------------------------------

    def by_family(self, name: str, prefixes: Prefixes) -> "list[tuple[int, Set | None]]":
        """Split `prefixes` into (family, set); (0, None) where they are every address of every family."""
        found: list[tuple[int, Set | None]] = []
        for family in self.families:
            mine = tuple(prefix for prefix in prefixes if len(prefix[0]) == (4 if family == 4 else 16))
            if any(length == 0 for _, length in mine):
                found.append((family, None))
            elif mine:
                found.append((family, Set(name=name, kind=f"ipv{family}", prefixes=mine)))
        if len(found) == len(self.families) and all(members is None for _, members in found):
            return [(0, None)]
        return found

    def guard(self) -> "list[Rule]":
        """Leave the family alone that is not programmed, where one table sees both."""
        return [Rule(row="family", family=f, verdict=RETURN) for f in (4, 6) if f not in self.families]

    def to(self, row: str, prefixes: Prefixes, name: str, verdict: Verdict, **more: "Any") -> "list[Rule]":
        return [
            Rule(row=row, family=family, destination=members, verdict=verdict, **more)
            for family, members in self.by_family(name, prefixes)
        ]

    def come_from(self, row: str, prefixes: Prefixes, name: str) -> "list[Rule]":
        return [
            Rule(row=row, family=family, source=members, verdict=RETURN)
            for family, members in self.by_family(name, prefixes)
        ]

    # -- rows that several chains share ------------------------------------------------------------

    def excluded_ports(self, protocols: "Iterable[str]") -> "list[Rule]":
        """O2, the ports excluded for every process."""
        if not self.r.exclude_outbound_ports:
            return []
        ports = _ports("exclude_outbound_ports", self.r.exclude_outbound_ports)
        return [Rule(row="O2", protocol=protocol, port=ports, verdict=RETURN) for protocol in protocols]

    def before_owner(self, protocols: "Iterable[str]") -> "list[Rule]":
        """O1 to O3."""
        r = self.r
        rules = [Rule(row="O1", oif=name, verdict=RETURN) for name in r.exclude_interfaces]
        rules += self.excluded_ports(protocols)
        for number, exclusion in enumerate(r.exclude_outbound_ports_for_uids):
            rules += _uid_exclusion(number, exclusion, protocols)
        rules += self.come_from("O3", r.passthrough_sources, "passthrough_sources")
        if r.inbound == "tproxy":
            # In this mode the proxy keeps its client's address and marks the socket instead.
            rules.append(Rule(row="O3", mark=r.tproxy_mark, verdict=RETURN))
        return rules

    def by_owner(self, proxy: Verdict, captured: str) -> "list[Rule]":
        """O4 and O5: the proxy to `proxy`, who is not captured returns, the rest goes to `captured`."""
        r = self.r
        rules = []
        row = "O5" if proxy == RETURN else "O4-O5"
        if r.proxy_uids:
            rules.append(Rule(row=row, uid=_ids("proxy_uids", "uid", r.proxy_uids), verdict=proxy))
        if r.proxy_gids:
            rules.append(Rule(row=row, gid=_ids("proxy_gids", "gid", r.proxy_gids), verdict=proxy))
        if r.exclude_outbound_gids:
            gids = _ids("exclude_outbound_gids", "gid", r.exclude_outbound_gids)
            rules.append(Rule(row="O5", gid=gids, verdict=RETURN))
        if r.include_outbound_gids == ALL_IDS:
            rules.append(Rule(row="O6-O11", verdict=("goto", captured)))
        else:
            if r.include_outbound_gids:
                gids = _ids("include_outbound_gids", "gid", r.include_outbound_gids)
                rules.append(Rule(row="O6-O11", gid=gids, verdict=("goto", captured)))
            rules.append(Rule(row="O5", verdict=RETURN))
        return rules

    def by_destination(self, protocol: str, leaf: Verdict, guest: bool = False) -> "list[Rule]":
        """O7 to O11, with `leaf` for what is captured."""
        r = self.r
        opens: dict[str, Any] = {"protocol": protocol, "syn": protocol == "tcp"}
        rules = self.to("O7", r.loopback_cidrs, "loopback_cidrs", RETURN)
        if guest:
            rules.append(Rule(row="O7", local_destination=True, verdict=RETURN))
        elif not r.include_loopback:
            rules.append(Rule(row="O7", oif="lo", verdict=RETURN))
        rules += self.to("O8", r.exclude_outbound_cidrs, "exclude_outbound_cidrs", RETURN)
        if r.include_outbound_ports:
            ports = _ports("include_outbound_ports", r.include_outbound_ports)
            rules.append(Rule(row="O9", port=ports, verdict=leaf, **opens))
        rules += self.to("O10", r.include_outbound_cidrs, "include_outbound_cidrs", leaf, **opens)
        rules.append(Rule(row="O11", verdict=RETURN))
        return rules

    def self_call(self, verdict: Verdict) -> "list[Rule]":
        """O4, for packets known to be the proxy's."""
        r = self.r
        rules = self.to("O5", r.loopback_cidrs, "loopback_cidrs", RETURN)
        if r.tunnel_port:
            rules.append(
                Rule(row="O5", protocol="tcp", port=_single("tunnel_port", r.tunnel_port), verdict=RETURN)
            )
        if r.dns:
            rules.append(Rule(row="O5", protocol="tcp", port=_single("dns", DNS), verdict=RETURN))
        rules.append(Rule(row="O4", oif="lo", protocol="tcp", syn=True, verdict=verdict))
        rules.append(Rule(row="O5", verdict=RETURN))
        return rules

    def capture_dns(self, guest: bool = False) -> "list[Rule]":
        """O6."""
        rules = []
        for protocol in self.r.dns_protocols:
            for family, members in self.by_family("dns", self.r.dns):
                for answered, verdict in self.dns_verdicts(family, guest):
                    rules.append(
                        Rule(
                            row="O6",
                            family=answered,
                            protocol=protocol,
                            syn=protocol == "tcp",
                            destination=members,
                            port=_single("dns", DNS),
                            verdict=verdict,
                        )
                    )
        return rules

    def dns_verdicts(self, family: int, guest: bool) -> "list[tuple[int, Verdict]]":
        """Return (family, verdict) for a DNS rule of `family`: dns_address is the resolver of its family."""
        port = self.r.dns_port
        targets: dict[int, Verdict] = {}
        for address in self.r.dns_address:
            # A guest's packet came from outside and may not go to a loopback address (martian).
            if not (guest and _is_loopback(address)):
                targets[4 if len(address) == 4 else 6] = ("dnat", address, port)
        if not targets:
            return [(family, ("redirect", port))]
        wanted = self.families if family == 0 else (family,)
        return [(f, targets.get(f, ("redirect", port))) for f in wanted]

    # -- inbound -----------------------------------------------------------------------------------

    def inbound(self, leaf: Verdict) -> "list[Rule]":
        """I1 to I5 with `leaf` for what is captured."""
        r = self.r
        rules = [Rule(row="I1", iif=name, verdict=RETURN) for name in r.exclude_interfaces]
        rules += self.come_from("I2", r.exclude_inbound_cidrs, "exclude_inbound_cidrs")
        if r.exclude_inbound_ports:
            ports = _ports("exclude_inbound_ports", r.exclude_inbound_ports)
            rules.append(Rule(row="I3", protocol="tcp", port=ports, verdict=RETURN))
        if r.tunnel_port:
            rules.append(
                Rule(row="I3", protocol="tcp", port=_single("tunnel_port", r.tunnel_port), verdict=RETURN)
            )
        rules.append(Rule(row="I5", local_source=True, verdict=RETURN))
        if r.include_inbound_ports:
            ports = _ports("include_inbound_ports", r.include_inbound_ports)
            rules.append(Rule(row="I4", protocol="tcp", syn=True, port=ports, verdict=leaf))
        rules.append(Rule(row="I5", verdict=RETURN))
        return rules

    # -- tables ------------------------------------------------------------------------------------

    def raw(self) -> "list[Chain]":
        """DNS_ZONE for what O6 captures over UDP; the same rows before it as in nat."""
        r = self.r
        if r.outbound == "off" or not r.dns or "udp" not in r.dns_protocols:
            return []
        zone = self.to("O6", r.dns, "dns", ("zone", DNS_ZONE))
        if not zone:  # no server of a family that is programmed
            return []
        dns = _single("dns", DNS)
        entry = Rule(row="O6", protocol="udp", port=dns, verdict=("goto", "dns_query"))
        return [
            Chain(name="dns_captured", table="raw", hook="", rules=tuple(zone)),
            Chain(
                name="dns_query",
                table="raw",
                hook="",
                rules=(*self.before_owner(("udp",)), *self.by_owner(RETURN, "dns_captured")),
            ),
            Chain(name="raw_output", table="raw", hook="output", rules=(*self.guard(), entry)),
        ]

    def mangle(self) -> "list[Chain]":
        """drop_invalid, and both directions of tproxy mode."""
        r = self.r
        tproxy = r.inbound == "tproxy"
        chains = []
        rules = []
        if r.drop_invalid:
            rules.append(Rule(row="drop_invalid", protocol="tcp", invalid=True, verdict=DROP))
        if tproxy:
            chains.append(Chain(name="to_proxy", table="mangle", hook="", rules=self.to_proxy()))
            chains.append(Chain(name="inbound", table="mangle", hook="", rules=self.tproxy_inbound()))
            # What guests send is outbound traffic.
            rules += [Rule(row="I5", iif=name, verdict=RETURN) for name in r.virtual_interfaces]
            rules += [
                Rule(row="tproxy", protocol="tcp", mark=r.tproxy_mark, verdict=SAVE_MARK),
                Rule(row="tproxy", protocol="tcp", syn=True, verdict=("goto", "inbound")),
                # To nf_tables any other packet to the proxy's port, wherever it is going, is its listener's.
                Rule(row="tproxy", protocol="tcp", wildcard=True, verdict=RETURN),
                Rule(row="tproxy", protocol="tcp", transparent=True, verdict=("mark", r.tproxy_mark)),
            ]
        if rules:
            guarded = (*self.guard(), *rules)
            chains.append(Chain(name="mangle_prerouting", table="mangle", hook="prerouting", rules=guarded))
        return chains + (self.tproxy_output() if tproxy else [])

    def to_proxy(self) -> tuple[Rule, ...]:
        verdict: Verdict = ("tproxy", self.r.inbound_port, self.r.tproxy_mark)
        return (Rule(row="I4", protocol="tcp", verdict=verdict),)

    def tproxy_inbound(self) -> tuple[Rule, ...]:
        """What opens a connection: by loopback only the proxy's own calls, else I1 to I5."""
        leaf: Verdict = ("goto", "to_proxy")
        return (
            Rule(row="O4", iif="lo", mark=self_mark(self.r), verdict=leaf),
            Rule(row="tproxy", iif="lo", verdict=RETURN),
            *self.inbound(leaf),
        )

    def tproxy_output(self) -> "list[Chain]":
        """Connections the proxy made with its client's address come back by mark; O4 is marked."""
        r = self.r
        chains = []
        rules = [Rule(row="tproxy", protocol="tcp", connmark=r.tproxy_mark, verdict=RESTORE_MARK)]
        if r.self_calls_to_inbound and r.outbound == "redirect":
            mark = self.self_call(("mark", self_mark(r)))
            chains.append(Chain(name="self_call", table="mangle", hook="", rules=tuple(mark)))
            rules += self.before_owner(("tcp",))
            for kind, spans in (("uid", r.proxy_uids), ("gid", r.proxy_gids)):
                if spans:
                    owner: dict[str, Any] = {kind: _ids(f"proxy_{kind}s", kind, spans)}
                    rules.append(Rule(row="O4", verdict=("goto", "self_call"), **owner))
        guarded = (*self.guard(), *rules)
        return [*chains, Chain(name="mangle_output", table="mangle", hook="output", rules=guarded)]

    def filter(self) -> "list[Chain]":
        """udp443 = reject: QUIC that would be captured were it TCP."""
        r = self.r
        if r.udp443 != "reject" or r.outbound == "off":
            return []
        entry = Rule(row="udp443", protocol="udp", port=_single("udp443", HTTPS), verdict=("goto", "quic"))
        owners = self.by_owner(RETURN, "quic_captured")
        return [
            Chain(
                name="quic_captured", table="filter", hook="", rules=tuple(self.by_destination("udp", REJECT))
            ),
            Chain(name="quic", table="filter", hook="", rules=(*self.before_owner(("udp",)), *owners)),
            Chain(name="filter_output", table="filter", hook="output", rules=(*self.guard(), entry)),
            *self.filter_guests(),
        ]

    def filter_guests(self) -> "list[Chain]":
        """udp443 = reject for the forwarded traffic of virtual interfaces."""
        r = self.r
        if not r.virtual_interfaces:
            return []
        quic = _single("udp443", HTTPS)
        guest = (*self.excluded_ports(("udp",)), *self.by_destination("udp", REJECT, guest=True))
        entries = [Rule(row="I1", iif=name, verdict=RETURN) for name in r.exclude_interfaces] + [
            Rule(row="udp443", iif=name, protocol="udp", port=quic, verdict=("goto", "quic_guest"))
            for name in r.virtual_interfaces
        ]
        return [
            Chain(name="quic_guest", table="filter", hook="", rules=guest),
            Chain(name="filter_forward", table="filter", hook="forward", rules=(*self.guard(), *entries)),
        ]

    def nat(self) -> "list[Chain]":
        """The commit of the whole: these chains come last, so nothing is captured by half a ruleset."""
        r = self.r
        chains = []
        incoming = [Rule(row="I5", iif="lo", verdict=RETURN)]
        if r.virtual_interfaces:
            chains.append(Chain(name="guest", table="nat", hook="", rules=self.guest()))
            incoming += [Rule(row="I1", iif=name, verdict=RETURN) for name in r.exclude_interfaces]
            incoming += [
                Rule(row="O6-O11", iif=name, verdict=("goto", "guest")) for name in r.virtual_interfaces
            ]
        if r.inbound == "redirect":
            incoming += self.inbound(("redirect", r.inbound_port))
        if len(incoming) > 1:
            rules = (*self.guard(), *incoming)
            chains.append(Chain(name="nat_prerouting", table="nat", hook="prerouting", rules=rules))
        return chains + (self.nat_output() if r.outbound == "redirect" else [])

    def nat_output(self) -> "list[Chain]":
        r = self.r
        chains = []
        proxy = RETURN
        if r.self_calls_to_inbound and r.inbound != "tproxy":
            proxy = ("goto", "proxy")
            calls = self.self_call(("redirect", r.inbound_port))
            chains.append(Chain(name="proxy", table="nat", hook="", rules=tuple(calls)))
        captured = (*self.capture_dns(), *self.by_destination("tcp", ("redirect", r.outbound_port)))
        rules = (*self.guard(), *self.before_owner(("tcp", "udp")), *self.by_owner(proxy, "captured"))
        return [
            *chains,
            Chain(name="captured", table="nat", hook="", rules=captured),
            Chain(name="nat_output", table="nat", hook="output", rules=rules),
        ]

    def guest(self) -> tuple[Rule, ...]:
        """Forwarded traffic of a virtual interface: outbound, of no owner."""
        if self.r.outbound == "off":
            return (Rule(row="O11", verdict=RETURN),)
        return (
            *self.excluded_ports(("tcp", "udp")),
            *self.capture_dns(guest=True),
            *self.by_destination("tcp", ("redirect", self.r.outbound_port), guest=True),
        )


def _is_loopback(address: bytes) -> bool:
    return address[:1] == b"\x7f" if len(address) == 4 else address == LOOPBACK[1][0]


def _uid_exclusion(number: int, exclusion: UidExclusion, protocols: "Iterable[str]") -> "list[Rule]":
    if not exclusion.uids or not exclusion.ports:
        return []
    uids = _ids(f"exclude_outbound_ports_for_uids_{number}", "uid", exclusion.uids)
    ports = _ports(f"exclude_outbound_ports_for_uids_{number}_ports", exclusion.ports)
    wanted = [protocol for protocol in protocols if protocol in exclusion.protocols]
    return [Rule(row="O2", protocol=protocol, uid=uids, port=ports, verdict=RETURN) for protocol in wanted]
