"""prevResult passes through, in the caller's version, and tells the pod's addresses."""

import copy

import pytest

from cni_plugin.config.netconf import VERSIONS
from cni_plugin.model import result

OLD, NEW = VERSIONS[:3], VERSIONS[3:]
INTERFACES = [
    {"name": "veth1", "mac": "aa:bb:cc:dd:ee:ff"},
    {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 9000},
]


def a_result(version, **more):
    """Return a Result with something unknown at every level."""
    ips = [
        {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1, "x": [1]},
        {"address": "fd00::3/64", "interface": 1},
    ]
    if version in OLD:
        for item, family in zip(ips, "46", strict=True):
            item["version"] = family
    return {
        "cniVersion": version,
        "interfaces": [{**item, "x": None} for item in INTERFACES],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0", "x": 1}],
        "dns": {"nameservers": ["10.96.0.10"], "x": {}},
        "x": {"y": [1, 2.5, None, True]},
        **more,
    }


@pytest.mark.parametrize("spoken", VERSIONS)
@pytest.mark.parametrize("wanted", VERSIONS)
def test_between_versions(spoken, wanted):
    """Red: a runtime gets a Result that is not of its version, or another plugin's keys are lost."""
    given = a_result(spoken)
    before = copy.deepcopy(given)
    assert result.convert(given, wanted) == a_result(wanted)
    assert given == before


@pytest.mark.parametrize("version", VERSIONS)
def test_same_version_is_untouched(version):
    """Red: a Result in the caller's own version is rewritten, down to the order of its keys."""
    assert repr(result.convert(a_result(version), version)) == repr(a_result(version))


@pytest.mark.parametrize("version", VERSIONS)
def test_without_prev_result(version):
    """Red: as the first or only plugin we answer with something libcni cannot read."""
    assert result.convert(None, version) == {"cniVersion": version, "ips": []}


def test_without_version_is_the_netconfs():
    """Red: a prevResult that names no version, as old libcni prints it, loses or gains ips[].version."""
    given = {"ips": [{"version": "4", "address": "10.1.2.3/24"}]}
    assert result.convert(given, "0.4.0") == {**given, "cniVersion": "0.4.0"}


@pytest.mark.parametrize("ips", [None, []])
def test_no_ips(ips):
    """Red: a Result without addresses (a layer 2 attachment) breaks the plugin."""
    given = {"cniVersion": "1.0.0", "ips": ips}
    assert result.convert(given, "0.4.0") == {"cniVersion": "0.4.0", "ips": ips}
    assert result.addresses(given) == []
    assert result.addresses({}) == result.addresses(None) == []


@pytest.mark.parametrize(("ips", "expected"), [
    ([("10.1.2.3/24", 1), ("fd00::3/64", 1)], ["0a010203", "fd000000000000000000000000000003"]),
    ([("10.1.2.1/24", 0), ("10.1.2.3/24", 1)], ["0a010203"]),
    ([("10.1.2.3/24", None), ("10.1.2.1/24", 0)], ["0a010203"]),
    ([("10.1.2.3/24", 7)], ["0a010203"]),
    ([("10.1.2.1/24", 0)], ["0a010201"]),
    ([("10.1.2.3/24", 1), ("10.1.2.3/32", 1)], ["0a010203"]),
])  # fmt: skip
def test_addresses(ips, expected):
    """Red: the host's end of a link counts as the pod's address, or a family of the pod goes unseen."""
    listed = [
        {"address": text} if index is None else {"address": text, "interface": index} for text, index in ips
    ]
    assert [found.hex() for found in result.addresses({"interfaces": INTERFACES, "ips": listed})] == expected
