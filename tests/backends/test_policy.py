"""What the eBPF programs are told, held against the programs' own types and against a plain reading of the redirection."""

import json
import os
import re
import subprocess
from _struct import calcsize, unpack
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.backends import maps, policy
from cni_plugin.backends.pins import OBJECTS
from cni_plugin.backends.policy import Policy
from cni_plugin.kernel.network import Network, Route
from cni_plugin.model.redirection import Redirection, UidExclusion
from tests.contract.table import cidrs

HEADER = os.path.join(os.path.dirname(OBJECTS), os.pardir, "bpf", "policy.h")
SIZES = {"policy": policy.POLICY, "fact": policy.FACT, "fact_key": policy.FACT_KEY}
NOWHERE = Network(interfaces={1: "lo", 2: "eth0", 3: "net1"}, routes=())


def types() -> dict[str, Any]:
    """Return the structures of an object's BTF by name, as bpftool reads them."""
    command = ["bpftool", "-j", "btf", "dump", "file", f"{OBJECTS}/connect.o", "format", "raw"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["types"]
    return {entry["name"]: entry for entry in listed if entry["kind"] == "STRUCT"}


@pytest.mark.parametrize(("name", "layout"), SIZES.items(), ids=SIZES)
def test_a_mirror_has_its_structures_size(name: str, layout: str) -> None:
    """The kernel reads past what we write, or the rest of what others wrote."""
    assert calcsize(layout) == types()[name]["size"]


def test_a_policy_has_its_fields_where_the_programs_look() -> None:
    """A program takes one field for another: a port for a flag."""
    offsets = {member["name"]: member["bits_offset"] // 8 for member in types()["policy"]["members"]}
    names = ["dns" if name == "dns4" else name for name in Policy.__annotations__ if name != "dns6"]
    assert list(offsets) == names
    for at, name in enumerate(names):
        assert calcsize("=" + policy.POLICY[1 : 1 + at]) == offsets[name] or name == "dns"
    assert calcsize("=QQQQIIIHHHH") == offsets["dns"]


def test_maps_have_the_sizes_of_their_types() -> None:
    """A look-up writes past its buffer."""
    found = types()
    sizes = [found[name]["size"] for name in ("policy", "fact_key", "fact", "hits")]
    assert sizes == [maps._POLICY, maps._KEY, maps._FACT, maps._HITS]
    assert maps._LISTENED == 16


def test_constants_are_the_headers() -> None:
    """A bit means one thing here and another to the programs."""
    with open(HEADER, encoding="utf-8") as file:
        defined = dict(re.findall(r"^#define (\w+)\s+\(1 << (\d+)\)", file.read(), re.MULTILINE))
    assert len(defined) > 20
    assert {name: getattr(policy, name) for name in defined} == {
        name: 1 << int(bit) for name, bit in defined.items()
    }


def told(found: dict[bytes, bytes], kind: int, data: bytes) -> tuple[int, int]:
    """Return (exclusions, bits) as a program's look-up does: those of the longest prefix that matches."""
    best, answer = -1, (0, 0)
    for key, value in found.items():
        length, _, of_kind, prefix = unpack(policy.FACT_KEY, key)
        length -= policy.KIND_BITS
        shift = 8 * len(data) - length
        same = (
            int.from_bytes(prefix[: len(data)]) >> shift == int.from_bytes(data) >> shift
            if shift >= 0
            else False
        )
        if of_kind[3] == kind and same and length > best:
            best, answer = length, unpack(policy.FACT, value)[:2]
    return answer


def merged(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return disjoint spans, as model.parse makes them."""
    result: list[tuple[int, int]] = []
    for low, high in sorted((min(span), max(span)) for span in spans):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return tuple(result)


numbers = st.integers(0, 0xFFFF) | st.sampled_from((0, 1, 79, 80, 81, 0xFFFE, 0xFFFF))
spans = st.lists(st.tuples(numbers, numbers), max_size=4).map(merged)


@given(excluded=spans, included=spans, ruled=spans, probes=st.lists(numbers, min_size=5, max_size=20))
def test_a_port_is_told_what_its_spans_say(
    excluded: Any, included: Any, ruled: Any, probes: list[int]
) -> None:
    """A range loses an edge, or spans that overlap hide each other."""
    redirection = Redirection(
        exclude_outbound_ports=excluded,
        include_outbound_ports=included,
        include_inbound_ports=(),
        exclude_outbound_ports_for_uids=(UidExclusion(uids=((5, 5),), ports=ruled),),
    )
    found = policy.facts(redirection, NOWHERE, lambda kind, ids: ids)
    for port in {*probes, *(edge for span in (*excluded, *included, *ruled) for edge in span)}:
        exclusions, bits = told(found, policy.PORT, port.to_bytes(2, "big"))
        holds = [any(low <= port <= high for low, high in some) for some in (excluded, included, ruled)]
        assert [bool(bits & policy.EXCLUDE_OUT), bool(bits & policy.INCLUDE_OUT), bool(exclusions)] == holds


@given(data=st.data())
def test_an_address_is_told_what_all_its_prefixes_say(data: st.DataObject) -> None:
    """The longest prefix that matches hides those around it, and an included network loses what is excluded in it."""
    some = st.lists(
        st.tuples(st.sampled_from((0, 1, 7, 8, 15, 16, 24, 31, 32)), st.integers(0, 0xFFFFFFFF)), max_size=4
    ).map(lambda pairs: cidrs(*{str(ip_network((number, length), strict=False)) for length, number in pairs}))
    fields = ("exclude_outbound_cidrs", "include_outbound_cidrs", "exclude_inbound_cidrs", "dns")
    wanted = {name: data.draw(some) for name in fields}
    marks = (policy.EXCLUDE_OUT, policy.INCLUDE_OUT, policy.EXCLUDE_IN, policy.DNS_SERVER)
    routes = (
        Route(network=bytes((10, 0, 0, 2)), length=32, local=True, interface=2, source=bytes((10, 0, 0, 2))),
        Route(network=bytes((10, 9, 0, 0)), length=16, local=False, interface=3),
        Route(network=bytes(4), length=0, local=False, interface=2),
    )
    network = Network(interfaces=NOWHERE.interfaces, routes=routes)
    redirection = Redirection(exclude_interfaces=("net+",), **wanted)
    found = policy.facts(redirection, network, lambda kind, ids: ids)
    ends = [int.from_bytes(prefix[0]) for name in fields for prefix in wanted[name]]
    for number in (*ends, 0, 0x0A000002, 0x0A000003, 0x0A090001, 0x7F000001, 0xFFFFFFFF):
        packed = number.to_bytes(4, "big")
        _, bits = told(found, policy.ADDRESS, policy.address(packed))
        for name, mark in zip(fields, marks, strict=True):
            inside = any(ip_address(packed) in ip_network(prefix) for prefix in wanted[name])
            assert bool(bits & mark) == inside, (name, ip_address(packed))
        assert bool(bits & policy.STAYS) == (packed[0] == 127 or packed == bytes((10, 0, 0, 2)))
        assert bool(bits & policy.BY_EXCLUDED) == (packed[:2] == bytes((10, 9)))
