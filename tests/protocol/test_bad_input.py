"""Malformed netconfs, environments, prevResults and annotations: one clear error each, netns untouched.

Long, nearly 300 lines, because it is one table; the runner at its end is short.
"""

import json
from typing import Any

import pytest

from cni_plugin.config.fields import FIELDS
from cni_plugin.config.netconf import OPTIONS
from tests.lab import effects
from tests.protocol.caller import OWNED, POD, Caller

# What a careless writer of rules would pass on.
SMUGGLED = [
    "80; drop",
    "80 } accept; add table inet evil {",
    "80\nadd table inet evil",
    "eth0 -j ACCEPT",
    'eth0" accept comment "',
    "$(touch /evil)",
    "`touch /evil`",
    "10.0.0.0/8\n-A OUTPUT -j ACCEPT\nCOMMIT",
    "../../../../evil",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "%n%s",
    "٨٠",
]
STATUS = {"sidecar.istio.io/status": '{"containers": ["istio-proxy"]}'}
TRAFFIC = "traffic.sidecar.istio.io/"
MODE = "sidecar.istio.io/interceptionMode"


def netconf(case: str, code: int, *words: str, **fields: Any):
    """Return an ADD whose netconf has these fields; the error says these words."""
    return pytest.param(("ADD", fields, {}, code, words), id=case)


def raw(case: str, code: int, *words: str, stdin: bytes):
    """Return an ADD with these bytes on stdin."""
    return pytest.param(("ADD", stdin, {}, code, words), id=case)


def env(case: str, command: str, *words: str, **variables: Any):
    """Return a call with these variables, None for those left out: always code 4."""
    return pytest.param((command, {}, variables, 4, words), id=case)


def field(camel: str, value: Any, *words: str):
    """Return an ADD with this field of the redirection: always code 7, naming the field."""
    case = f"{camel}={json.dumps(value)[:30]}"
    return netconf(case, 7, f"redirection.{camel}", "expected", *words, redirection={**OWNED, camel: value})


def prev(case: str, path: str, **result: Any):
    """Return an ADD with this prevResult: always code 7, naming the path in it."""
    return netconf(f"prevResult {case}", 7, path, "expected", prevResult={"cniVersion": "1.1.0", **result})


def annotation(name: str, value: Any, *words: str, code: int = 102):
    """Return an ADD of a meshed pod with this annotation; the error names it, its value and what was expected."""
    given = {"io.kubernetes.cri.pod-annotations": {**STATUS, name: value}}
    fields = {"mesh": "istio", "runtimeConfig": given}
    said = (name, "expected", *words)
    return pytest.param(("ADD", fields, {"CNI_ARGS": POD}, code, said), id=f"{name}={json.dumps(value)[:30]}")


JSON = [
    raw("empty", 6, "netconf", stdin=b""),
    raw("blank", 6, "netconf", stdin=b" \n"),
    raw("cut", 6, "netconf", "not JSON", stdin=b'{"cniVersion": "1.0.0"'),
    raw("two", 6, "extra text", stdin=b"{}{}"),
    raw("list", 6, "a JSON object", stdin=b"[]"),
    raw("null", 6, "a JSON object", stdin=b"null"),
    raw("string", 6, "a JSON object", stdin=b'"{}"'),
    raw("shell", 6, "netconf", stdin=b"$(reboot)"),
    raw("single quotes", 6, "netconf", stdin=b"{'cniVersion': '1.0.0'}"),
    raw("comment", 6, "netconf", stdin=b'{} // "a"'),
    raw("not UTF-8", 6, "UTF-8", stdin=b'{"name": "\xff"}'),
    raw("UTF-16", 6, "UTF-8", stdin='{"name": "x"}'.encode("utf-16")),
    raw("byte order mark", 6, "netconf", stdin=b"\xef\xbb\xbf{}"),
    raw("NUL", 6, "netconf", stdin=b'{"name": "a\0b"}'),
    raw("NaN", 6, "NaN", stdin=b'{"name": NaN}'),
    raw("Infinity", 6, "Infinity", stdin=b'{"name": -Infinity}'),
    raw("1e999", 6, "1e999", stdin=b'{"prevResult": {"x": 1e999}}'),
    raw("duplicate key", 6, "'name' appears twice", stdin=b'{"name": "a", "name": "b"}'),
    raw("duplicate deep", 6, "'dns' appears twice", stdin=b'{"redirection": {"dns": "off", "dns": "all"}}'),
    raw("deep lists", 6, "deep", stdin=b"[" * 1_000_000),
    raw("deep objects", 6, "deep", stdin=b'{"x":' * 500_000),
    raw("10,000 digits", 6, "digits", stdin=b'{"redirection": {"inboundPort": ' + b"9" * 10_000 + b"}}"),
    raw("20 MB", 7, "16 MiB", stdin=b'{"x": "' + b"a" * 20_000_000 + b'"}'),
]
NETCONF = [
    raw("no version", 1, "cniVersion", "0.1.0", "0.3.0", "1.1.0", stdin=b'{"name": "net"}'),
    netconf("old version", 1, "cniVersion", "0.2.0", "1.1.0", cniVersion="0.2.0"),
    netconf("future version", 1, "cniVersion", "9.0.0", cniVersion="9.0.0"),
    netconf("empty version", 1, "cniVersion", cniVersion=""),
    netconf("version number", 6, "cniVersion", "1.1", "a string", cniVersion=1.1),
    netconf("version null", 6, "cniVersion", "null", cniVersion=None),
    netconf("version list", 6, "cniVersion", "a string", cniVersion=["1.0.0"]),
    raw("no name", 7, "name", stdin=b'{"cniVersion": "1.0.0"}'),
    netconf("empty name", 7, "name", name=""),
    netconf("name null", 7, "name", name=None),
    netconf("name path", 7, "name", "../x", name="../x"),
    netconf("name newline", 7, "name", name="a\n"),
    netconf("unknown mesh", 7, "mesh", "nosuch", "generic", mesh="nosuch"),
    netconf("mesh path", 7, "mesh", "../../etc", mesh="../../etc/passwd"),
    netconf("mesh null", 7, "mesh", mesh=None),
    netconf("no backends", 7, "backends", backends=[]),
    netconf("unknown backend", 7, "backends[1]", "pf", "nftables", backends=["nftables", "pf"]),
    netconf("backends string", 7, "backends", backends="nftables"),
    netconf("namespaces string", 7, "excludeNamespaces", excludeNamespaces="kube-system"),
    netconf("namespace blank", 7, "excludeNamespaces[0]", excludeNamespaces=["kube system"]),
    netconf("agent bool", 7, "agent", "auto", agent=True),
    netconf("socket relative", 7, "agentSocket", "absolute", agentSocket="agent.sock"),
    netconf("socket long", 7, "agentSocket", "107", agentSocket="/" + "a" * 107),
    netconf("state relative", 7, "stateDir", "absolute", stateDir="state"),
    netconf("log level", 7, "logLevel", "debug", logLevel="trace"),
    netconf("runtimeConfig list", 7, "runtimeConfig", runtimeConfig=[]),
    netconf("args string", 7, "args", args="a"),
    netconf("args.cni list", 7, "args.cni", args={"cni": []}),
    netconf("redirection list", 7, "redirection", redirection=[]),
    netconf("redirection null", 7, "redirection", redirection=None),
    netconf(
        "unknown field", 7, "redirection.inbuondPort", "no such", redirection={**OWNED, "inbuondPort": 1}
    ),
    netconf("snake case", 7, "redirection.proxy_uids", redirection={"proxy_uids": [1]}),
    netconf("no owner", 7, "proxyUids", redirection={"inboundPort": 15006}),
    netconf("one port twice", 7, "outboundPort", "15006", redirection={**OWNED, "outboundPort": 15006}),
    netconf("dns port taken", 7, "dnsPort", redirection={**OWNED, "dns": "all", "dnsPort": 15001}),
]
FIELD = [
    *[
        field("inboundPort", value, "1..65535")
        for value in (0, -1, 65536, 10**30, "15006", 15006.0, True, None, [15006])
    ],
    *[
        field("excludeInboundPorts", [value], "[0]")
        for value in (-1, 65536, True, 80.0, None, "90-80", "80-", "-1", "ssh")
    ],
    *[field("excludeInboundPorts", value) for value in (80, "80", {"80": 1}, True, None)],
    *[field("proxyUids", [value], "[0]") for value in (-1, 2**32 - 1, "root", False, 1e3, "0-4294967295")],
    *[
        field("excludeOutboundCidrs", [value], "[0]")
        for value in ("10.0.0.0/33", "10.0.0/8", "::/129", "x", 10, "::ffff:1.2.3.4/128")
    ],
    field("excludeOutboundCidrs", "10.0.0.0/8"),
    field("dns", ["10.96.0.10:53"], "[0]"),
    field("dns", []),
    field("dnsAddress", ["1.1.1.1", "1.0.0.1"], "one IPv4"),
    field("dnsProtocols", ["icmp"], "[0]"),
    *[field("excludeInterfaces", [value], "[0]") for value in ("a" * 16, "..", "", "a/b", "eth0:1", 0)],
    field("excludeOutboundPortsForUids", [{"ports": [80]}], "[0]"),
    field("excludeOutboundPortsForUids", [{"uids": [1], "protocol": "icmp"}], "[0].protocol"),
    field("excludeOutboundPortsForUids", [{"uids": [1], "gids": [1]}], "[0].gids"),
    field("tproxyMark", 0),
    field("tproxyTable", 254),
    field("dropInvalid", "true"),
    field("selfCallsToInbound", 1),
    field("families", "ipv6", "dual"),
]
SMUGGLING = [
    *[field(camel, SMUGGLED[at % len(SMUGGLED)]) for at, camel in enumerate(FIELDS)],
    *[field(camel, [SMUGGLED[-1 - at % len(SMUGGLED)]]) for at, camel in enumerate(FIELDS)],
    *[
        netconf(f"smuggled {key}", 7, key, "expected", **{key: SMUGGLED[at % len(SMUGGLED)]})
        for at, key in enumerate(OPTIONS)
    ],
    *[
        field("excludeOutboundPortsForUids", [{"uids": [1], "ports": [1], key: SMUGGLED[at]}], key)
        for at, key in enumerate(("uids", "ports", "protocol"))
    ],
    *[field("excludeInterfaces", [text], "[0]") for text in SMUGGLED],
]
PREV = [
    netconf("prevResult list", 7, "prevResult", prevResult=[]),
    netconf("prevResult text", 7, "prevResult", prevResult="{}"),
    prev("version", "prevResult.cniVersion", cniVersion="0.2.0"),
    prev("version number", "prevResult.cniVersion", cniVersion=1),
    prev("ips object", "prevResult.ips", ips={}),
    prev("ip text", "prevResult.ips[0]", ips=["10.0.0.1/8"]),
    prev("no address", "prevResult.ips[0].address", ips=[{}]),
    prev("bare address", "prevResult.ips[0].address", ips=[{"address": "10.0.0.1"}]),
    prev(
        "second address",
        "prevResult.ips[1].address",
        ips=[{"address": "10.0.0.1/8"}, {"address": "10.0.0.1/33"}],
    ),
    prev("address shell", "prevResult.ips[0].address", ips=[{"address": "$(id)/8"}]),
    prev("gateway", "prevResult.ips[0].gateway", ips=[{"address": "10.0.0.1/8", "gateway": "10.0.0"}]),
    prev("index text", "prevResult.ips[0].interface", ips=[{"address": "10.0.0.1/8", "interface": "0"}]),
    prev("index bool", "prevResult.ips[0].interface", ips=[{"address": "10.0.0.1/8", "interface": True}]),
    prev("index negative", "prevResult.ips[0].interface", ips=[{"address": "10.0.0.1/8", "interface": -1}]),
    prev("interfaces object", "prevResult.interfaces", interfaces={}),
    prev("interface null", "prevResult.interfaces[0]", interfaces=[None]),
    prev("interface no name", "prevResult.interfaces[0].name", interfaces=[{}]),
    prev("sandbox number", "prevResult.interfaces[0].sandbox", interfaces=[{"name": "eth0", "sandbox": 1}]),
]
ENVIRONMENT = [
    env("unknown command", "ADD ", "CNI_COMMAND", "STATUS"),
    env("lower case", "add", "CNI_COMMAND"),
    env("UPDATE", "UPDATE", "CNI_COMMAND"),
    env(
        "nothing",
        "ADD",
        "CNI_CONTAINERID",
        "CNI_NETNS",
        "CNI_IFNAME",
        CNI_CONTAINERID=None,
        CNI_NETNS=None,
        CNI_IFNAME=None,
    ),
    env("no container", "DEL", "CNI_CONTAINERID", CNI_CONTAINERID=None),
    env("empty netns", "CHECK", "CNI_NETNS", CNI_NETNS=""),
    env("no path", "GC", "CNI_PATH", CNI_PATH=None),
    env("container path", "ADD", "CNI_CONTAINERID", CNI_CONTAINERID="../../etc/cron.d/x"),
    env("container dot", "ADD", "CNI_CONTAINERID", CNI_CONTAINERID=".hidden"),
    env("container newline", "DEL", "CNI_CONTAINERID", CNI_CONTAINERID="a\nb"),
    env("container long", "ADD", "CNI_CONTAINERID", "200", CNI_CONTAINERID="a" * 201),
    env("interface long", "ADD", "CNI_IFNAME", CNI_IFNAME="a" * 16),
    env("interface long in bytes", "ADD", "CNI_IFNAME", CNI_IFNAME="é" * 8),
    env("interface dots", "ADD", "CNI_IFNAME", CNI_IFNAME=".."),
    env("interface slash", "ADD", "CNI_IFNAME", CNI_IFNAME="a/b"),
    env("interface colon", "DEL", "CNI_IFNAME", CNI_IFNAME="eth0:1"),
    env("interface blank", "CHECK", "CNI_IFNAME", CNI_IFNAME="eth 0"),
    env("interface bytes", "ADD", "CNI_IFNAME", "UTF-8", CNI_IFNAME=b"\xff"),
    env("netns bytes", "ADD", "CNI_NETNS", "UTF-8", CNI_NETNS=b"/run/netns/\xff"),
    env("args no value", "ADD", "CNI_ARGS", "KEY=VALUE", CNI_ARGS="K8S_POD_NAME"),
    env("args empty pair", "ADD", "CNI_ARGS", CNI_ARGS="A=B;;C=D"),
    env("args no key", "ADD", "CNI_ARGS", CNI_ARGS="=x"),
    env("args bytes", "ADD", "CNI_ARGS", CNI_ARGS=b"A=\xff"),
    env("netns missing", "ADD", "CNI_NETNS", CNI_NETNS="/run/netns/there-is-none"),
    env("netns relative", "ADD", "CNI_NETNS", CNI_NETNS="run/netns/there-is-none"),
    env("netns directory", "ADD", "CNI_NETNS", CNI_NETNS="/proc"),
    env("netns of another kind", "ADD", "CNI_NETNS", CNI_NETNS="/proc/self/ns/mnt"),
]
ANNOTATIONS = [
    *[annotation(TRAFFIC + "excludeInboundPorts", text, "excludeInboundPorts") for text in ("65536", "-1", "http", "80,", "90-80", "80;443", "8 0")],
    *[annotation(TRAFFIC + "includeInboundPorts", text) for text in ("*,80", "80 } accept", "80\nadd table inet evil")],
    *[annotation(TRAFFIC + "includeOutboundPorts", text) for text in ("1e3", "0x50", "٨٠")],
    *[annotation(TRAFFIC + "excludeOutboundPorts", text) for text in ("$(id)", "80 -j ACCEPT", "80\0")],
    *[annotation(TRAFFIC + "includeOutboundIPRanges", text) for text in ("10.0.0.0", "10.0.0.0/33", "*,10.0.0.0/8", "any")],
    *[annotation(TRAFFIC + "excludeOutboundIPRanges", text) for text in ("10.0.0.0/8 -j ACCEPT", "::/129", "10.0.0.0/8\n-A X", "::ffff:10.0.0.0/104")],
    *[annotation(TRAFFIC + "excludeInterfaces", text) for text in ("eth0 -j ACCEPT", 'eth0" accept', "a" * 16, "..", "eth0,", "-i", "\ud800")],
    annotation(TRAFFIC + "kubevirtInterfaces", "tap0;x"),
    annotation("istio.io/reroute-virtual-interfaces", "$(reboot)"),
    annotation("status.sidecar.istio.io/port", "fifteen"),
    *[annotation(MODE, text, "REDIRECT", "TPROXY") for text in ("tproxy", "", "REDIRECT ", "TPROXY; drop")],
    annotation("sidecar.istio.io/inject", "maybe"),
    annotation("sidecar.istio.io/status", "{"),
    annotation("sidecar.istio.io/status", '{"containers": 5}'),
    annotation(MODE, 5, "a string", code=7),
    annotation(MODE, {"a": "b"}, "a string", code=7),
]  # fmt: skip


@pytest.fixture(scope="module")
def before(crowded):
    """Say what is in the netns before any call."""
    return effects.everything(crowded)


@pytest.fixture
def call_crowded(executable, crowded, tmp_path):
    """Call the plugin for an attachment in `crowded`."""
    return Caller(executable, crowded.path, str(tmp_path / "state"))


@pytest.mark.parametrize("case", [*JSON, *NETCONF, *FIELD, *SMUGGLING, *PREV, *ENVIRONMENT, *ANNOTATIONS])
def test_refused(call_crowded, crowded, before, case):
    """Red: the error is unclear or none, its code is not the spec's, or something was done in spite of it."""
    command, given, variables, code, words = case
    if isinstance(given, bytes):
        answer = call_crowded(command, given, env=variables)
    else:
        owned = {} if "mesh" in given else {"redirection": OWNED}
        answer = call_crowded(command, env=variables, **{**owned, **given})
    error = answer.error()
    assert error["code"] == code, error
    for word in words:
        assert word in error["msg"], error
    assert "Traceback" not in answer.stderr
    assert call_crowded.records() == []
    assert effects.everything(crowded) == before


def test_the_same_without_a_fault(call):
    """Red: the cases above are refused for another reason than their fault."""
    call("ADD", redirection=OWNED).success()
    given = {
        "io.kubernetes.cri.pod-annotations": {**STATUS, MODE: "TPROXY", TRAFFIC + "excludeInboundPorts": "80"}
    }
    call("ADD", env={"CNI_ARGS": POD}, mesh="istio", runtimeConfig=given).success()
