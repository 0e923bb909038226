"""The oracle against the contract's table: every row, and which row wins where two hold.

Long because each claim is a line or, where the formatter breaks it, several.
"""

from socket import AF_INET, AF_INET6, inet_pton

import pytest

from cni_plugin.model.contract import INBOUND, OUTBOUND, VIRTUAL, Outcome, Probe, outcome
from cni_plugin.model.redirection import ANYWHERE, Prefix, Redirection, UidExclusion


def packed(text: str) -> bytes:
    """Return `text` as the bytes of an address."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def prefix(text: str) -> Prefix:
    """Return "10.0.0.0/8" as a prefix."""
    address, length = text.split("/")
    return packed(address), int(length)


OWN = (packed("10.50.0.2"), packed("fd00:50::2"))
BASE = Redirection(proxy_uids=((1337, 1337),), proxy_gids=((1337, 1337),))


def judge(redirection: Redirection, families: tuple[int, ...] = (4, 6), **probe: object) -> Outcome:
    """Ask the oracle about an outbound TCP connection of an application, or what `probe` changes of it."""
    facts: dict[str, object] = {
        "direction": "out",
        "protocol": "tcp",
        "destination": "10.1.2.3",
        "port": 80,
        "uid": 1000,
    }
    facts |= {"gid": 1000, "own_addresses": OWN, **probe}
    for name in ("destination", "source"):
        if name in facts:
            facts[name] = packed(str(facts[name]))
    return outcome(redirection, families, Probe(**facts))


def inbound(redirection: Redirection, families: tuple[int, ...] = (4, 6), **probe: object) -> Outcome:
    """Ask the oracle about an inbound TCP connection to port 80."""
    return judge(
        redirection,
        families,
        **{"direction": "in", "destination": "10.50.0.2", "source": "10.9.9.9", **probe},
    )


def short(result: Outcome) -> tuple[str, str, int]:
    """Return what a table row says: row, action, port."""
    return result.row, result.action, result.port


EIGHTY = ((80, 80),)
TEN = (prefix("10.0.0.0/8"), prefix("2001:db8::/32"))
QUIC = {"protocol": "udp", "port": 443}
SELF = {"destination": "10.50.0.2", "uid": 1337}

INBOUND_CASES = [
    ("to the proxy", {}, {}, ("I4", "redirect", 15006)),
    (
        "IPv6 to the proxy",
        {},
        {"destination": "fd00:50::2", "source": "2001:db8::9"},
        ("I4", "redirect", 15006),
    ),
    ("excluded interface", {"exclude_interfaces": ("net1",)}, {"interface": "net1"}, ("I1", "pass", 0)),
    ("interface prefix", {"exclude_interfaces": ("net+",)}, {"interface": "net1"}, ("I1", "pass", 0)),
    (
        "not that interface",
        {"exclude_interfaces": ("net",)},
        {"interface": "net1"},
        ("I4", "redirect", 15006),
    ),
    ("excluded source", {"exclude_inbound_cidrs": TEN}, {}, ("I2", "pass", 0)),
    ("other source", {"exclude_inbound_cidrs": TEN}, {"source": "11.0.0.1"}, ("I4", "redirect", 15006)),
    ("excluded port", {"exclude_inbound_ports": ((79, 81),)}, {}, ("I3", "pass", 0)),
    ("tunnel port", {"tunnel_port": 80}, {}, ("I3", "pass", 0)),
    ("port not included", {"include_inbound_ports": ((81, 90),)}, {}, ("I5", "pass", 0)),
    ("udp", {}, {"protocol": "udp"}, ("I5", "pass", 0)),
    ("off", {"inbound": "off"}, {}, ("I5", "pass", 0)),
    ("tproxy", {"inbound": "tproxy"}, {}, ("I4", "redirect", 15006)),
    ("from itself", {}, {"source": "10.50.0.2"}, ("I5", "pass", 0)),
    ("from loopback", {}, {"source": "127.0.0.1"}, ("I5", "pass", 0)),
    ("I1 before I2", {"exclude_interfaces": ("eth0",), "exclude_inbound_cidrs": TEN}, {}, ("I1", "pass", 0)),
    ("I2 before I3", {"exclude_inbound_ports": EIGHTY, "exclude_inbound_cidrs": TEN}, {}, ("I2", "pass", 0)),
    (
        "I3 before I4",
        {"exclude_inbound_ports": EIGHTY, "include_inbound_ports": EIGHTY},
        {},
        ("I3", "pass", 0),
    ),
]

OUTBOUND_CASES = [
    ("to the proxy", {}, {}, ("O10", "redirect", 15001)),
    ("excluded interface", {"exclude_interfaces": ("eth0",)}, {}, ("O1", "pass", 0)),
    ("loopback leaves by lo", {"exclude_interfaces": ("eth0",)}, SELF, ("O4", "redirect", 15006)),
    ("lo excluded", {"exclude_interfaces": ("lo",)}, SELF, ("O1", "pass", 0)),
    ("excluded port", {"exclude_outbound_ports": EIGHTY}, {}, ("O2", "pass", 0)),
    (
        "excluded udp port",
        {"exclude_outbound_ports": ((53, 53),), "dns": ANYWHERE},
        {"protocol": "udp", "port": 53},
        ("O2", "pass", 0),
    ),
    (
        "excluded for uid",
        {"exclude_outbound_ports_for_uids": (UidExclusion(uids=((1000, 1000),), ports=EIGHTY),)},
        {},
        ("O2", "pass", 0),
    ),
    (
        "other uid",
        {"exclude_outbound_ports_for_uids": (UidExclusion(uids=((1001, 1001),), ports=EIGHTY),)},
        {},
        ("O10", "redirect", 15001),
    ),
    (
        "other protocol",
        {"exclude_outbound_ports_for_uids": (UidExclusion(uids=((1000, 1000),), protocols=("udp",)),)},
        {},
        ("O10", "redirect", 15001),
    ),
    ("passthrough", {}, {**SELF, "source": "127.0.0.6"}, ("O3", "pass", 0)),
    ("passthrough, IPv6", {}, {"destination": "fd00:50::2", "source": "::6"}, ("O3", "pass", 0)),
    ("tproxy mark", {"inbound": "tproxy"}, {**SELF, "mark": 1337}, ("O3", "pass", 0)),
    ("tproxy mark, other mode", {}, {**SELF, "mark": 1337}, ("O4", "redirect", 15006)),
    ("self-call by uid", {}, SELF, ("O4", "redirect", 15006)),
    ("self-call by gid", {}, {"destination": "10.50.0.2", "gid": 1337}, ("O4", "redirect", 15006)),
    ("self-call, 127.0.0.2", {}, {**SELF, "destination": "127.0.0.2"}, ("O4", "redirect", 15006)),
    ("self-call, inbound off", {"inbound": "off"}, SELF, ("O4", "redirect", 15006)),
    ("self-call, inbound tproxy", {"inbound": "tproxy"}, SELF, ("O4", "redirect", 15006)),
    ("self-call, no policy", {"self_calls_to_inbound": False}, SELF, ("O5", "pass", 0)),
    ("self-call, tunnel", {"tunnel_port": 80}, SELF, ("O5", "pass", 0)),
    ("self-call, dns", {"dns": ANYWHERE}, {**SELF, "port": 53}, ("O5", "pass", 0)),
    ("self-call, 53 without dns", {}, {**SELF, "port": 53}, ("O4", "redirect", 15006)),
    ("self-call, udp", {}, {**SELF, "protocol": "udp"}, ("O5", "pass", 0)),
    ("proxy to 127.0.0.1", {}, {**SELF, "destination": "127.0.0.1"}, ("O5", "pass", 0)),
    ("proxy uid", {}, {"uid": 1337}, ("O5", "pass", 0)),
    ("proxy gid", {}, {"gid": 1337}, ("O5", "pass", 0)),
    ("proxy dns", {"dns": ANYWHERE}, {"uid": 1337, "port": 53, "protocol": "udp"}, ("O5", "pass", 0)),
    ("gid excluded", {"exclude_outbound_gids": ((1000, 1000),)}, {}, ("O5", "pass", 0)),
    ("gid not included", {"include_outbound_gids": ((5, 9),)}, {}, ("O5", "pass", 0)),
    ("gid included", {"include_outbound_gids": ((5, 1000),)}, {}, ("O10", "redirect", 15001)),
    ("dns udp", {"dns": ANYWHERE}, {"protocol": "udp", "port": 53}, ("O6", "redirect", 15053)),
    ("dns tcp", {"dns": ANYWHERE}, {"port": 53}, ("O6", "redirect", 15053)),
    (
        "dns to loopback",
        {"dns": ANYWHERE},
        {"port": 53, "destination": "127.0.0.1"},
        ("O6", "redirect", 15053),
    ),
    ("dns of a server", {"dns": (prefix("10.1.2.3/32"),)}, {"port": 53}, ("O6", "redirect", 15053)),
    ("dns of another", {"dns": (prefix("10.1.2.4/32"),)}, {"port": 53}, ("O10", "redirect", 15001)),
    ("dns, udp only", {"dns": ANYWHERE, "dns_protocols": ("udp",)}, {"port": 53}, ("O10", "redirect", 15001)),
    ("dns off, udp", {}, {"protocol": "udp", "port": 53}, ("O11", "pass", 0)),
    ("to 127.0.0.1", {}, {"destination": "127.0.0.1"}, ("O7", "pass", 0)),
    ("to ::1", {"include_loopback": True}, {"destination": "::1"}, ("O7", "pass", 0)),
    ("to itself", {}, {"destination": "10.50.0.2"}, ("O7", "pass", 0)),
    (
        "to itself, included",
        {"include_loopback": True},
        {"destination": "fd00:50::2"},
        ("O10", "redirect", 15001),
    ),
    ("loopback cidr", {"loopback_cidrs": TEN}, {}, ("O7", "pass", 0)),
    ("excluded cidr", {"exclude_outbound_cidrs": TEN}, {}, ("O8", "pass", 0)),
    (
        "excluded cidr, IPv6",
        {"exclude_outbound_cidrs": TEN},
        {"destination": "2001:db8::1"},
        ("O8", "pass", 0),
    ),
    (
        "included port",
        {"include_outbound_ports": EIGHTY, "include_outbound_cidrs": ()},
        {},
        ("O9", "redirect", 15001),
    ),
    ("not included", {"include_outbound_cidrs": (prefix("10.2.0.0/16"),)}, {}, ("O11", "pass", 0)),
    ("off", {"outbound": "off", "dns": ANYWHERE}, {"port": 53}, ("O11", "pass", 0)),
    ("off, self-call", {"outbound": "off"}, SELF, ("O11", "pass", 0)),
    ("quic", {"udp443": "reject"}, QUIC, ("udp443", "reject", 0)),
    ("quic passes", {}, QUIC, ("O11", "pass", 0)),
    (
        "quic by port",
        {"udp443": "reject", "include_outbound_ports": ((443, 443),), "include_outbound_cidrs": ()},
        QUIC,
        ("udp443", "reject", 0),
    ),
    ("quic not included", {"udp443": "reject", "include_outbound_cidrs": ()}, QUIC, ("O11", "pass", 0)),
    ("quic of the proxy", {"udp443": "reject"}, {**QUIC, "uid": 1337}, ("O5", "pass", 0)),
    ("quic excluded", {"udp443": "reject", "exclude_outbound_cidrs": TEN}, QUIC, ("O8", "pass", 0)),
    ("udp to another port", {"udp443": "reject"}, {"protocol": "udp"}, ("O11", "pass", 0)),
    (
        "O1 before O2",
        {"exclude_interfaces": ("eth0",), "exclude_outbound_ports": EIGHTY},
        {},
        ("O1", "pass", 0),
    ),
    ("O2 before O3", {"exclude_outbound_ports": EIGHTY}, {**SELF, "source": "127.0.0.6"}, ("O2", "pass", 0)),
    ("O2 before O4", {"exclude_outbound_ports": EIGHTY}, SELF, ("O2", "pass", 0)),
    ("O6 before O7", {"dns": ANYWHERE}, {"port": 53, "destination": "10.50.0.2"}, ("O6", "redirect", 15053)),
    (
        "O6 before O8",
        {"dns": ANYWHERE, "exclude_outbound_cidrs": TEN},
        {"port": 53},
        ("O6", "redirect", 15053),
    ),
    (
        "O8 before O9",
        {"exclude_outbound_cidrs": TEN, "include_outbound_ports": EIGHTY},
        {},
        ("O8", "pass", 0),
    ),
    ("O9 before O10", {"include_outbound_ports": EIGHTY}, {}, ("O9", "redirect", 15001)),
]

GUEST = {"interface": "k6t-eth0"}
VIRTUAL_CASES = [
    ("to the proxy", {}, {"destination": "10.1.2.3"}, ("O10", "redirect", 15001)),
    (
        "excluded interface",
        {"exclude_interfaces": ("k6t-eth0",)},
        {"destination": "10.1.2.3"},
        ("I1", "pass", 0),
    ),
    ("excluded port", {"exclude_outbound_ports": EIGHTY}, {"destination": "10.1.2.3"}, ("O2", "pass", 0)),
    (
        "no owner",
        {"include_outbound_gids": ((5, 5),)},
        {"destination": "10.1.2.3", "uid": 1337},
        ("O10", "redirect", 15001),
    ),
    (
        "dns",
        {"dns": ANYWHERE},
        {"destination": "10.1.2.3", "port": 53, "protocol": "udp"},
        ("O6", "redirect", 15053),
    ),
    ("to the pod", {"include_loopback": True}, {}, ("O7", "pass", 0)),
    ("excluded cidr", {"exclude_outbound_cidrs": TEN}, {"destination": "10.1.2.3"}, ("O8", "pass", 0)),
    ("outbound off", {"outbound": "off"}, {"destination": "10.1.2.3"}, ("O11", "pass", 0)),
    ("inbound off", {"inbound": "off"}, {"destination": "10.1.2.3"}, ("O10", "redirect", 15001)),
]


@pytest.mark.parametrize(
    ("changes", "probe", "expected"), [c[1:] for c in INBOUND_CASES], ids=[c[0] for c in INBOUND_CASES]
)
def test_inbound(
    changes: dict[str, object], probe: dict[str, object], expected: tuple[str, str, int]
) -> None:
    """A row of the inbound table, or the precedence of two, is misread: explain tells people the wrong thing."""
    assert short(inbound(BASE.replace(**changes), **probe)) == expected


@pytest.mark.parametrize(
    ("changes", "probe", "expected"), [c[1:] for c in OUTBOUND_CASES], ids=[c[0] for c in OUTBOUND_CASES]
)
def test_outbound(
    changes: dict[str, object], probe: dict[str, object], expected: tuple[str, str, int]
) -> None:
    """A row of the outbound table, or the precedence of two, is misread: explain tells people the wrong thing."""
    assert short(judge(BASE.replace(**changes), **probe)) == expected


@pytest.mark.parametrize(
    ("changes", "probe", "expected"), [c[1:] for c in VIRTUAL_CASES], ids=[c[0] for c in VIRTUAL_CASES]
)
def test_virtual(
    changes: dict[str, object], probe: dict[str, object], expected: tuple[str, str, int]
) -> None:
    """Traffic of a guest behind a virtual interface is judged by the wrong table."""
    redirection = BASE.replace(virtual_interfaces=("k6t+",), **changes)
    assert short(inbound(redirection, **{**GUEST, **probe})) == expected


@pytest.mark.parametrize("family", [4, 6])
def test_a_family_that_is_not_programmed_passes(family: int) -> None:
    """explain would claim that traffic of an unprogrammed family goes through the proxy."""
    destination, source = ("10.1.2.3", "10.9.9.9") if family == 4 else ("2001:db8::1", "2001:db8::9")
    others = (10 - family,)
    assert short(judge(BASE, others, destination=destination)) == ("O11", "pass", 0)
    assert short(inbound(BASE, others, destination=destination, source=source)) == ("I5", "pass", 0)


def test_every_sentence_names_the_facts_it_rests_on() -> None:
    """A platform engineer reading `why` could not find the setting or value that decided."""
    why = judge(BASE.replace(exclude_outbound_cidrs=TEN)).why
    assert why == "Its destination 10.1.2.3 is in excludeOutboundCidrs."
    assert "uid 1337" in judge(BASE, uid=1337).why
    assert "eth0" in judge(BASE.replace(exclude_interfaces=("eth0",))).why
    assert "15006" in judge(BASE, **SELF).why
    assert "IPv4" in judge(BASE, (6,)).why
    assert "chosen by the kernel" not in inbound(BASE.replace(exclude_inbound_cidrs=TEN)).why


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (INBOUND, ["I1", "I2", "I3", "I4", "I5"]),
        (OUTBOUND, ["O1", "O2", "O3", "O4", "O5", "O6", "O7", "O8", "O9", "O10", "udp443", "O11"]),
        (VIRTUAL, ["I1", "O2", "O6", "O7", "O8", "O9", "O10", "udp443", "O11"]),
    ],
    ids=["inbound", "outbound", "virtual"],
)
def test_the_tables_hold_their_rows_in_order(table: tuple[tuple[str, ...], ...], rows: list[str]) -> None:
    """A row is lost or out of order although each condition alone is right."""
    order = list(dict.fromkeys(row for row, *_ in table))
    assert [row for row in order if row in ("I5", "O11")] == [rows[-1]]
    assert [row for row in order if row not in ("I5", "O11")] == rows[:-1]
