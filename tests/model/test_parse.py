"""Hostile text and JSON become integers, prefixes and names, or one clear error."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.config.fields import FIELDS, from_json, to_json
from cni_plugin.model import parse
from cni_plugin.model.errors import INVALID_NETCONF, CniError
from cni_plugin.model.redirection import (
    ALL_IDS,
    ALL_PORTS,
    ANYWHERE,
    LOOPBACK,
    PASSTHROUGH,
    Redirection,
    UidExclusion,
)

OWNED = Redirection(proxy_uids=((1337, 1337),))

GOOD = [
    (parse.ports, [], ()),
    (parse.ports, "*", ALL_PORTS),
    (parse.ports, [443, 80, "81-90", "0080"], ((80, 90), (443, 443))),
    (parse.ports, ["1-10", "5-20", "3", 21], ((1, 21),)),
    (parse.ports, ["0-65535"], ALL_PORTS),
    (parse.ids, "*", ALL_IDS),
    (parse.ids, [4294967294, "1000-2000"], ((1000, 2000), (4294967294, 4294967294))),
    (parse.prefixes, "*", ANYWHERE),
    (parse.prefixes, ["::/0", "0.0.0.0/0", "10.0.0.0/8"], ANYWHERE),
    (parse.prefixes, ["127.0.0.1", "::1"], LOOPBACK),
    (parse.prefixes, ["127.0.0.6/32", "::6/128"], PASSTHROUGH),
    (parse.prefixes, ["10.1.2.3/8", "10.9.0.0/16", "10.255.255.255"], ((b"\x0a\0\0\0", 8),)),
    (parse.prefixes, ["FD00::1/8"], ((b"\xfd" + bytes(15), 8),)),
    (parse.servers, "off", ()),
    (parse.servers, "all", ANYWHERE),
    (parse.servers, ["10.96.0.10"], ((b"\x0a\x60\0\x0a", 32),)),
    (parse.one_per_family, "::1", (bytes(15) + b"\1",)),
    (parse.one_per_family, ["::1", "1.2.3.4"], (b"\1\2\3\4", bytes(15) + b"\1")),
    (parse.addresses, ["1.2.3.4", "1.2.3.4"], (b"\1\2\3\4",)),
    (parse.names, ["eth0", "tap+", "br-0.1@if2", "eth0"], ("eth0", "tap+", "br-0.1@if2")),
    (parse.protocols, ["tcp", "udp", "tcp"], ("udp", "tcp")),
    (parse.tunnel_port, 0, 0),
    (parse.table, 252, 252),
    (parse.table, 256, 256),
    (parse.mark, 0x7FFFFFFF, 0x7FFFFFFF),
    (
        parse.uid_exclusions,
        [{"uids": [5], "ports": [53], "protocol": "udp"}, {"uids": "*"}],
        (UidExclusion(uids=((5, 5),), ports=((53, 53),), protocols=("udp",)), UidExclusion(uids=ALL_IDS)),
    ),
]
BAD = [
    *[
        (parse.ports, [item])
        for item in (-1, 65536, True, 1.0, None, "", "-1", "9-8", "1-2-3", "80\n", "٣", "1" * 9999)
    ],
    *[(parse.ports, value) for value in ("80", 80, None, {}, {"*": 1}, ["*"], True, "")],
    *[(parse.ids, [item]) for item in (4294967295, "4294967295", -1, "root", "0x10", False)],
    *[
        (parse.prefixes, [item])
        for item in ("10.0.0.0/33", "::/129", "10.0/8", "010.0.0.0/8", "1.2.3.4/", "/8", "*")
    ],
    *[
        (parse.prefixes, [item])
        for item in ("::ffff:1.2.3.4", "::ffff:0:0/96", "fe80::1%eth0", "1.2.3.4\0", "\ud800", 8)
    ],
    *[(parse.prefixes, value) for value in ("10.0.0.0/8", None, {"*": 1}, 0)],
    *[(parse.servers, value) for value in ("on", [], None, ["10.0.0.0/8"], True)],
    *[(parse.one_per_family, value) for value in (["1.1.1.1", "2.2.2.2"], "localhost", None, [None])],
    *[
        (parse.names, [item])
        for item in ("", ".", "..", "+", "a" * 16, "a/b", "a b", "a;b", "a\n", "-j", "é", "a+b", None)
    ],
    *[(parse.names, value) for value in ("eth0", None, {"eth0": 1})],
    *[(parse.port, value) for value in (0, 65536, "80", True, 80.0, None)],
    *[(parse.mark, value) for value in (0, 2**31, "1")],
    *[(parse.table, value) for value in (0, 253, 254, 255, 2**32)],
    *[(parse.boolean, value) for value in (0, 1, "true", None)],
    *[(parse.protocols, value) for value in ([], ["icmp"], "tcp", None)],
    *[
        (parse.uid_exclusions, value)
        for value in ({}, [{}], [{"uids": [1], "gid": 1}], [{"uids": [1], "protocol": "icmp"}])
    ],
]
TEXTS = [
    (parse.port_list, "", ()),
    (parse.port_list, "  ", ()),
    (parse.port_list, " 80 , 443,8000-8001 ", ((80, 80), (443, 443), (8000, 8001))),
    (parse.port_list, "*", ALL_PORTS),
    (parse.prefix_list, "", ()),
    (parse.prefix_list, "*", ANYWHERE),
    (parse.prefix_list, "10.0.0.0/8, fd00::/8", ((b"\x0a\0\0\0", 8), (b"\xfd" + bytes(15), 8))),
    (parse.name_list, "eth1, tap+", ("eth1", "tap+")),
    (parse.bool_text, " True ", True),
    (parse.bool_text, "0", False),
]
BAD_TEXTS = [
    *[(parse.port_list, text) for text in ("80,", ",", "80 443", "80;443", "80\n} ; drop", "*,80", "$(id)")],
    *[(parse.prefix_list, text) for text in ("10.0.0.1", "10.0.0.0/8 10.1.0.0/16", "*,10.0.0.0/8")],
    *[(parse.name_list, text) for text in ("eth0,", "eth0 -j ACCEPT", 'eth0" accept', "eth0,,eth1")],
    *[(parse.bool_text, text) for text in ("yes", "", "tRUE", "2")],
]


@pytest.mark.parametrize(("read", "value", "expected"), [*GOOD, *TEXTS])
def test_value_is_read(read, value, expected):
    """Red: a value that people write means something else than they wrote."""
    assert read("f", value) == expected


@pytest.mark.parametrize(("read", "value"), [*BAD, *BAD_TEXTS])
def test_value_is_refused(read, value):
    """Red: a value that is no port, prefix or name gets through, or its error does not name it."""
    with pytest.raises(CniError) as caught:
        read("some.field", value)
    assert caught.value.code == INVALID_NETCONF
    assert caught.value.msg.startswith("some.field")
    assert ", expected " in caught.value.msg
    assert "\n" not in caught.value.msg


def test_bare_address_only_where_allowed():
    """Red: an annotation's address without a length is taken although its mesh refuses it, or the other way."""
    assert parse.prefix_list("f", "10.0.0.1", bare=True) == ((b"\x0a\0\0\1", 32),)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted).map(tuple)))
def test_spans_hold_the_same_numbers(spans):
    """Red: merging ranges loses or adds a port, or leaves two that touch."""
    found = parse.merged(list(spans))
    assert {n for low, high in found for n in range(low, high + 1)} == {
        n for low, high in spans for n in range(low, high + 1)
    }
    assert all(found[at][1] + 1 < found[at + 1][0] for at in range(len(found) - 1))


@given(
    st.lists(
        st.one_of(st.ip_addresses(v=4, network="10.0.0.0/24"), st.ip_addresses(v=6, network="fd00::/120")),
        max_size=8,
    ),
    st.data(),
)
def test_prefixes_agree_with_ipaddress(hosts, data):
    """Red: host bits stay, a contained prefix stays, or an address is gained or lost."""
    written = [
        f"{host}/{data.draw(st.integers(host.max_prefixlen - 8, host.max_prefixlen))}" for host in hosts
    ]
    given_networks = [ipaddress.ip_network(text, strict=False) for text in written]
    widest = {
        n
        for n in given_networks
        if not any(n != o and n.version == o.version and n.subnet_of(o) for o in given_networks)
    }
    expected = sorted(widest, key=lambda n: (n.version, n.network_address.packed))
    assert parse.prefixes_text(parse.prefixes("f", written)) == [str(network) for network in expected]


def test_long_lists_stay_whole():
    """Red: a list of prefixes or ports is cut, or takes quadratic work (the suite's timeout)."""
    networks = [f"10.{at >> 8 & 255}.{at & 255}.{at >> 16 << 6}/26" for at in range(200_000)]
    assert len(parse.prefixes("f", networks[::-1])) == 200_000
    assert len(parse.ports("f", list(range(0, 65536, 2)))) == 32768


@pytest.mark.parametrize("redirection", [
    Redirection(),
    OWNED.replace(inbound_port=15001),
    OWNED.replace(inbound="off", inbound_port=15001),
    OWNED.replace(dns=ANYWHERE, dns_port=15001),
    OWNED.replace(dns=ANYWHERE, dns_port=15006),
    Redirection(outbound="redirect", self_calls_to_inbound=False),
])  # fmt: skip
def test_incoherent(redirection):
    """Red: a redirection that loops the proxy's traffic, or has one port for two listeners, is installed."""
    with pytest.raises(CniError) as caught:
        parse.coherent(redirection)
    assert caught.value.code == INVALID_NETCONF


@pytest.mark.parametrize("redirection", [
    OWNED,
    Redirection(proxy_gids=((1, 1),)),
    Redirection(exclude_outbound_gids=((1, 1),)),
    Redirection(include_outbound_gids=((1, 1),)),
    Redirection(outbound="off"),
    Redirection(outbound="off", dns=ANYWHERE, outbound_port=15006, dns_port=15006),
    OWNED.replace(inbound="off", self_calls_to_inbound=False, inbound_port=15001),
    OWNED.replace(dns_port=15001),
])  # fmt: skip
def test_coherent(redirection):
    """Red: a sound redirection is refused, perhaps for a port that nothing uses."""
    parse.coherent(redirection)


def test_every_field_prints_and_reads_back():
    """Red: the record of an attachment, which DEL and CHECK read, does not mean what ADD applied."""
    full = Redirection(
        proxy_uids=((1, 5),), dns=((b"\x0a\x60\0\x0a", 32),), dns_address=(b"\1\2\3\4",), exclude_interfaces=("eth1", "tap+"),
        exclude_inbound_cidrs=((b"\xfd" + bytes(15), 8),), dns_protocols=("udp",), udp443="reject", tproxy_table=256,
        exclude_outbound_ports_for_uids=(UidExclusion(uids=((7, 9),), ports=((53, 53),), protocols=("udp",)),),
    )  # fmt: skip
    for redirection in (Redirection(), full):
        printed = to_json(redirection)
        assert set(printed) == set(FIELDS)
        assert from_json("f", printed) == redirection
