"""The Istio dialect, as a table: a pod's annotations in, verdict and every changed field out.

Long because the table of annotations is in one place: a row that is missing shows. The outcomes are stated from Istio's own documentation and code (research of the 1.32 line), not computed.
"""

import json

import pytest

from cni_plugin.mesh import dialect
from cni_plugin.model.errors import BAD_POD, CniError
from cni_plugin.model.redirection import ALL_PORTS, ANYWHERE, NONE, Redirection
from tests.mesh.cases import V4, V6, decide, netconf, prefixes, spans

TRAFFIC = "traffic.sidecar.istio.io/"
STATUS = "sidecar.istio.io/status"
MODE = "sidecar.istio.io/interceptionMode"


def status(containers=("istio-proxy",), init=("istio-validation",)) -> str:
    """Return the status annotation as the webhook writes it; None is Go's null list."""
    lists = {"initContainers": init and list(init), "containers": containers and list(containers)}
    return json.dumps({**lists, "volumes": ["istio-envoy"], "imagePullSecrets": None, "revision": "default"})


INJECTED = {STATUS: status()}

# The default pod: what istio-cni installs for a pod that says nothing but "injected".
DEFAULT = Redirection(
    proxy_uids=spans(1337),
    proxy_gids=spans(1337),
    inbound="redirect",
    outbound="redirect",
    inbound_port=15006,
    outbound_port=15001,
    dns_port=15053,
    tunnel_port=15008,
    include_inbound_ports=ALL_PORTS,
    exclude_inbound_ports=spans((15020, 15021), 15090),
    include_outbound_ports=NONE,
    exclude_outbound_ports=spans(15020),
    include_outbound_cidrs=ANYWHERE,
    exclude_outbound_cidrs=(),
    dns=(),
    self_calls_to_inbound=True,
    include_loopback=False,
    loopback_cidrs=prefixes("127.0.0.1/32", "::1/128"),
    tproxy_mark=1337,
    tproxy_table=133,
)

# cni/pkg/plugin/sidecar_redirect.go, annotationRegistry: all that istio-cni knows.
ISTIO_CNI_READS = {
    STATUS,
    MODE,
    "sidecar.istio.io/inject",
    "status.sidecar.istio.io/port",
    TRAFFIC + "includeOutboundIPRanges",
    TRAFFIC + "excludeOutboundIPRanges",
    TRAFFIC + "includeInboundPorts",
    TRAFFIC + "excludeInboundPorts",
    TRAFFIC + "includeOutboundPorts",
    TRAFFIC + "excludeOutboundPorts",
    TRAFFIC + "excludeInterfaces",
    TRAFFIC + "kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
}

# Annotations of an injected pod, and the fields that differ from DEFAULT.
REDIRECTED = {
    "says nothing": ({}, {}),
    "native sidecar": ({STATUS: status(None, ("istio-validation", "istio-proxy"))}, {}),
    "status without lists": ({STATUS: "{}"}, {}),
    "inject true": ({"sidecar.istio.io/inject": "true"}, {}),
    "template sidecar": ({"inject.istio.io/templates": "sidecar"}, {}),
    "template sidecar and own": ({"inject.istio.io/templates": "sidecar, own"}, {}),
    "mode REDIRECT": ({MODE: "REDIRECT"}, {}),
    "mode TPROXY": ({MODE: "TPROXY"}, {"inbound": "tproxy"}),
    "include ranges": (
        {TRAFFIC + "includeOutboundIPRanges": "10.0.0.0/8,fd00::/8"},
        {"include_outbound_cidrs": prefixes("10.0.0.0/8", "fd00::/8")},
    ),
    "include ranges, blanks": (
        {TRAFFIC + "includeOutboundIPRanges": " 172.16.0.0/12 , 10.0.0.0/8 "},
        {"include_outbound_cidrs": prefixes("10.0.0.0/8", "172.16.0.0/12")},
    ),
    "include ranges, host bits": (
        {TRAFFIC + "includeOutboundIPRanges": "10.1.2.3/8"},
        {"include_outbound_cidrs": prefixes("10.0.0.0/8")},
    ),
    "include ranges *": ({TRAFFIC + "includeOutboundIPRanges": "*"}, {}),
    "include ranges empty": ({TRAFFIC + "includeOutboundIPRanges": ""}, {"include_outbound_cidrs": ()}),
    "include ranges with loopback": (
        {TRAFFIC + "includeOutboundIPRanges": "127.0.0.2/32,10.0.0.0/8"},
        {"include_outbound_cidrs": prefixes("10.0.0.0/8", "127.0.0.2/32"), "include_loopback": True},
    ),
    "include ranges with 127/8": (
        {TRAFFIC + "includeOutboundIPRanges": "127.0.0.0/8"},
        {"include_outbound_cidrs": prefixes("127.0.0.0/8"), "include_loopback": True},
    ),
    "include ranges with ::1": (
        {TRAFFIC + "includeOutboundIPRanges": "::1/128"},
        {"include_outbound_cidrs": prefixes("::1/128"), "include_loopback": True},
    ),
    "include ranges of all IPv4 are no loopback range": (
        {TRAFFIC + "includeOutboundIPRanges": "0.0.0.0/0"},
        {"include_outbound_cidrs": prefixes("0.0.0.0/0")},
    ),
    "exclude ranges": (
        {TRAFFIC + "excludeOutboundIPRanges": "169.254.169.254/32,fd00:1::/32"},
        {"exclude_outbound_cidrs": prefixes("169.254.169.254/32", "fd00:1::/32")},
    ),
    "exclude ranges *": ({TRAFFIC + "excludeOutboundIPRanges": "*"}, {"exclude_outbound_cidrs": ANYWHERE}),
    "include inbound": (
        {TRAFFIC + "includeInboundPorts": "8080,9090"},
        {"include_inbound_ports": spans(8080, 9090)},
    ),
    "include inbound *": ({TRAFFIC + "includeInboundPorts": "*"}, {}),
    "include inbound empty": ({TRAFFIC + "includeInboundPorts": ""}, {"include_inbound_ports": NONE}),
    "include inbound range": (
        {TRAFFIC + "includeInboundPorts": "8000-8100"},
        {"include_inbound_ports": spans((8000, 8100))},
    ),
    "exclude inbound": (
        {TRAFFIC + "excludeInboundPorts": "22, 15020"},
        {"exclude_inbound_ports": spans(22, (15020, 15021), 15090)},
    ),
    "exclude inbound empty keeps what is always excluded": ({TRAFFIC + "excludeInboundPorts": ""}, {}),
    "exclude inbound *": ({TRAFFIC + "excludeInboundPorts": "*"}, {"exclude_inbound_ports": ALL_PORTS}),
    "status port": (
        {"status.sidecar.istio.io/port": "16020"},
        {"exclude_inbound_ports": spans((15020, 15021), 15090, 16020)},
    ),
    "status port beside exclude inbound": (
        {"status.sidecar.istio.io/port": "16020", TRAFFIC + "excludeInboundPorts": "22"},
        {"exclude_inbound_ports": spans(22, (15020, 15021), 15090, 16020)},
    ),
    "include outbound": ({TRAFFIC + "includeOutboundPorts": "443"}, {"include_outbound_ports": spans(443)}),
    "include outbound *": ({TRAFFIC + "includeOutboundPorts": "*"}, {"include_outbound_ports": ALL_PORTS}),
    "exclude outbound replaces the default": (
        {TRAFFIC + "excludeOutboundPorts": "3306,5432-5434"},
        {"exclude_outbound_ports": spans(3306, (5432, 5434))},
    ),
    "exclude outbound empty": ({TRAFFIC + "excludeOutboundPorts": ""}, {"exclude_outbound_ports": NONE}),
    "exclude outbound *": ({TRAFFIC + "excludeOutboundPorts": "*"}, {"exclude_outbound_ports": ALL_PORTS}),
    "exclude interfaces": (
        {TRAFFIC + "excludeInterfaces": "net1, eth1.20"},
        {"exclude_interfaces": ("net1", "eth1.20")},
    ),
    "virtual interfaces": (
        {"istio.io/reroute-virtual-interfaces": "k6t-eth0,docker0"},
        {"virtual_interfaces": ("k6t-eth0", "docker0")},
    ),
    "virtual interfaces, deprecated name": (
        {TRAFFIC + "kubevirtInterfaces": "k6t-eth0"},
        {"virtual_interfaces": ("k6t-eth0",)},
    ),
    "virtual interfaces, both names": (
        {"istio.io/reroute-virtual-interfaces": "tap0", TRAFFIC + "kubevirtInterfaces": "k6t-eth0"},
        {"virtual_interfaces": ("tap0",)},
    ),
    "virtual interfaces, empty but there": (
        {"istio.io/reroute-virtual-interfaces": "", TRAFFIC + "kubevirtInterfaces": "k6t-eth0"},
        {"virtual_interfaces": ()},
    ),
}

# Annotations, and the reason to pass.
PASSED = {
    "no annotations": ({}, "not-meshed"),
    "annotations of others": (
        {"prometheus.io/scrape": "true", TRAFFIC + "includeInboundPorts": "x"},
        "not-meshed",
    ),
    "its own init container": ({STATUS: status(init=("istio-init",))}, "init-container"),
    "no proxy": ({STATUS: status(("app",), ())}, "no-proxy"),
    "null lists": ({STATUS: status(None, None)}, "no-proxy"),
    "gateway": ({**INJECTED, "inject.istio.io/templates": "gateway"}, "no-proxy"),
    "proxyless gRPC": ({**INJECTED, "inject.istio.io/templates": "own, grpc-agent"}, "no-proxy"),
    "inject false": ({**INJECTED, "sidecar.istio.io/inject": "false"}, "opted-out"),
    "mode NONE": ({**INJECTED, MODE: "NONE"}, "interception-none"),
}

# Annotations of an injected pod, and what the error must name: annotation, value, expectation.
REFUSED = {
    "mode": ({MODE: "redirect"}, [MODE, "'redirect'", '"REDIRECT" or "TPROXY"']),
    "mode empty": ({MODE: ""}, [MODE, "''"]),
    "inject": ({"sidecar.istio.io/inject": "maybe"}, ["sidecar.istio.io/inject", "'maybe'", "true or false"]),
    "status": ({STATUS: "yes"}, [STATUS, "'yes'", "JSON object"]),
    "status a list": ({STATUS: "[]"}, [STATUS, "JSON object"]),
    "status lists": ({STATUS: '{"containers": 7}'}, [STATUS + ".containers", "7", "list"]),
    "bare address": (
        {TRAFFIC + "includeOutboundIPRanges": "10.1.2.3"},
        ["IncludeOutbound", "'10.1.2.3'", "prefix"],
    ),
    "bare excluded": (
        {TRAFFIC + "excludeOutboundIPRanges": "::1"},
        ["excludeOutboundIPRanges", "'::1'", "prefix"],
    ),
    "star in a list": (
        {TRAFFIC + "includeOutboundIPRanges": "10.0.0.0/8,*"},
        ["includeOutboundIPRanges", "'*'"],
    ),
    "prefix length": (
        {TRAFFIC + "excludeOutboundIPRanges": "10.0.0.0/33"},
        ["excludeOutboundIPRanges", "/33"],
    ),
    "port word": ({TRAFFIC + "includeInboundPorts": "http"}, ["includeInboundPorts", "'http'", "0..65535"]),
    "port too high": (
        {TRAFFIC + "excludeInboundPorts": "70000"},
        ["excludeInboundPorts", "'70000'", "65535"],
    ),
    "port range backwards": (
        {TRAFFIC + "excludeOutboundPorts": "90-80"},
        ["excludeOutboundPorts", "'90-80'"],
    ),
    "port negative": ({TRAFFIC + "includeOutboundPorts": "-1"}, ["includeOutboundPorts", "'-1'"]),
    "trailing comma": ({TRAFFIC + "excludeOutboundPorts": "80,"}, ["excludeOutboundPorts", "''"]),
    "status port": ({"status.sidecar.istio.io/port": "health"}, ["status.sidecar.istio.io/port", "'health'"]),
    "interface with a blank": (
        {TRAFFIC + "excludeInterfaces": "eth0 -j DROP"},
        ["excludeInterfaces", "interface name"],
    ),
    "interface too long": ({TRAFFIC + "excludeInterfaces": "a" * 16}, ["excludeInterfaces", "1..15"]),
    "virtual interface": (
        {"istio.io/reroute-virtual-interfaces": "tap0\nadd rule"},
        ["istio.io/reroute-virtual-interfaces", "interface name"],
    ),
    "deprecated name": ({TRAFFIC + "kubevirtInterfaces": "-i"}, ["kubevirtInterfaces", "'-i'"]),
}


def istio(annotations, **more):
    """Return the netconf of a node whose runtime delivered `annotations`."""
    return netconf("istio", pod_annotations=annotations, **more)


@pytest.mark.parametrize("case", REDIRECTED)
def test_injected_pod_is_redirected_as_it_says(case):
    """Red: an annotation of Istio's means something else to us, so replacing istio-cni changes traffic."""
    annotations, changed = REDIRECTED[case]
    decision = decide(istio({**INJECTED, **annotations}))
    assert (decision.verdict, decision.reason) == ("redirect", "meshed")
    wanted = DEFAULT.replace(**changed)
    differing = {
        name for name, value in decision.redirection.fields().items() if value != getattr(wanted, name)
    }
    assert not differing


@pytest.mark.parametrize("case", PASSED)
def test_pod_without_interception_passes(case):
    """Red: a pod outside the mesh is redirected to a proxy that it does not have."""
    annotations, reason = PASSED[case]
    decision = decide(istio(annotations))
    assert (decision.verdict, decision.reason, decision.redirection) == ("pass", reason, None)
    assert decision.detail


@pytest.mark.parametrize("case", REFUSED)
def test_unreadable_annotation_is_an_error_that_names_it(case):
    """Red: a typo in an annotation is ignored (bypass), or refused without saying which value is wrong."""
    annotations, named = REFUSED[case]
    with pytest.raises(CniError) as caught:
        decide(istio({**INJECTED, **annotations}))
    assert caught.value.code == BAD_POD
    for word in named:
        assert word.lower() in caught.value.msg.lower()


def test_every_annotation_of_the_dialect_is_in_the_table():
    """Red: an annotation was added to istio.toml without a case that says what it means."""
    loaded = dialect.load("istio")
    rows = [*loaded["pass"], *loaded["set"]]
    known = {name for row in rows for source, name, _ in row["facts"] if source == "annotation"}
    shown = {
        name for table in (REDIRECTED, PASSED) for annotations, _ in table.values() for name in annotations
    }
    assert known <= shown
    assert known == ISTIO_CNI_READS | {"inject.istio.io/templates"}


def test_default_pod_says_where_each_value_came_from():
    """Red: `explain` and the record no longer tell a dialect's default from a built-in one."""
    origins = decide(istio(INJECTED)).origins
    assert origins["outboundPort"] == "dialect default"
    assert origins["excludeInboundPorts"] == "dialect default + always"
    assert origins["udp443"] == "built-in default"


def test_annotation_beats_netconf_beats_dialect():
    """Red: an operator's setting hides a pod's, or a default hides the operator's."""
    overrides = {"excludeOutboundPorts": [25], "outboundPort": 16001, "excludeInboundPorts": [7]}
    annotations = {**INJECTED, TRAFFIC + "excludeOutboundPorts": "3306"}
    decision = decide(istio(annotations, redirection=overrides))
    assert decision.redirection.exclude_outbound_ports == spans(3306)
    assert decision.origins["excludeOutboundPorts"] == f"annotation {TRAFFIC}excludeOutboundPorts"
    assert decision.redirection.outbound_port == 16001
    assert decision.origins["outboundPort"] == "netconf redirection.outboundPort"
    assert decision.redirection.exclude_inbound_ports == spans(7, (15020, 15021), 15090)
    assert decision.origins["excludeInboundPorts"] == "netconf redirection.excludeInboundPorts + always"


def test_derived_value_says_from_what():
    """Red: includeLoopback is on in `explain` and nobody can tell why."""
    decision = decide(istio({**INJECTED, TRAFFIC + "includeOutboundIPRanges": "127.0.0.0/8"}))
    assert decision.origins["includeLoopback"] == "derived from includeOutboundCidrs"


def test_alias_says_which_name_was_used():
    """Red: a deprecated annotation is obeyed and `explain` names the other one."""
    decision = decide(istio({**INJECTED, TRAFFIC + "kubevirtInterfaces": "tap0"}))
    assert decision.origins["virtualInterfaces"] == f"annotation {TRAFFIC}kubevirtInterfaces"


def test_what_annotations_cannot_tell_is_recorded():
    """Red: an assumed proxy uid or DNS setting looks like a known one."""
    told = " ".join(decide(istio(INJECTED)).unknown)
    for fact in ("runAsUser", "runAsGroup", "ISTIO_META_DNS_CAPTURE", "INVALID_DROP", "DISABLE_ENVOY"):
        assert fact in told
    assert "ISTIO_DUAL_STACK" not in told


def test_what_the_netconf_says_is_not_unknown():
    """Red: an operator who set the uid and DNS is still told that they are guesses."""
    told = " ".join(decide(istio(INJECTED, redirection={"proxyUids": [5000], "dns": "all"})).unknown)
    assert "runAsUser" not in told
    assert "ISTIO_META_DNS_CAPTURE" not in told
    assert "runAsGroup" in told


def test_dual_stack_pod_records_what_is_assumed_of_the_proxy():
    """Red: a dual-stack pod whose proxy has no IPv6 listener is refused connections with no hint why."""
    decision = decide(istio(INJECTED), addresses=(V4, V6))
    assert any("ISTIO_DUAL_STACK" in text for text in decision.unknown)
    assert decision.warnings == ()


def test_ipv6_that_bypasses_is_warned_of():
    """Red: families ipv4 on a dual-stack pod is a silent bypass."""
    decision = decide(istio(INJECTED, redirection={"families": "ipv4"}), addresses=(V4, V6))
    assert any("IPv6 (fd00::3) bypasses the mesh" in text for text in decision.warnings)


@pytest.mark.parametrize(
    ("annotations", "overrides", "warning"),
    [
        ({TRAFFIC + "includeOutboundIPRanges": "10.0.0.0/8"}, {}, "no IPv6 prefix"),
        ({TRAFFIC + "includeOutboundIPRanges": "fd00::/8"}, {}, "no IPv4 prefix"),
        ({TRAFFIC + "excludeOutboundIPRanges": "*"}, {}, "nothing outbound"),
        ({TRAFFIC + "excludeOutboundPorts": "*"}, {}, "nothing outbound"),
        ({TRAFFIC + "excludeInboundPorts": "*"}, {}, "nothing inbound"),
        ({}, {"outbound": "off", "dns": "all"}, "dns has no effect"),
        ({}, {"proxyUids": [0]}, "uid 0"),
    ],
)
def test_settings_that_bypass_the_mesh_are_warned_of(annotations, overrides, warning):
    """Red: a pod starts half outside the mesh and nothing says so."""
    decision = decide(istio({**INJECTED, **annotations}, redirection=overrides), addresses=(V4, V6))
    assert any(warning in text for text in decision.warnings)


def test_order_of_the_decision():
    """Red: a pod that must start before everything else waits for facts about itself."""
    missing = netconf("istio", exclude_namespaces=("kube-system",))
    system = {"K8S_POD_NAMESPACE": "kube-system", "K8S_POD_NAME": "dns"}
    agent = {"K8S_POD_NAMESPACE": "mesh-redirect", "K8S_POD_NAME": "mesh-redirect-agent-x7"}
    assert decide(missing, system).reason == "excluded-namespace"
    assert decide(missing, agent).reason == "own-agent"
    assert decide(missing, {}).reason == "not-kubernetes"
    assert decide(missing, {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": ""}).reason == "not-kubernetes"


def test_agent_pod_is_known_by_namespace_and_name_together():
    """Red: any pod can escape the mesh by its name."""
    elsewhere = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "mesh-redirect-agent-x7"}
    beside = {"K8S_POD_NAMESPACE": "mesh-redirect", "K8S_POD_NAME": "cart-0"}
    assert decide(istio(INJECTED), elsewhere).reason == "meshed"
    assert decide(istio(INJECTED), beside).reason == "meshed"


def test_annotations_not_delivered_is_try_again_with_the_mend():
    """Red: a conflist without the capability lets every pod bypass the mesh, or does not say what to add."""
    decision = decide(istio(None))
    assert (decision.verdict, decision.reason) == ("retry", "annotations-missing")
    assert '"capabilities": {"io.kubernetes.cri.pod-annotations": true}' in decision.detail


def test_required_agent_holds_only_pods_that_may_be_meshed():
    """Red: "agent": "require" bypasses the agent, or holds up a pod that is provably not meshed."""
    assert decide(istio(INJECTED, agent="require")).reason == "agent-required"
    assert decide(istio(None, agent="require")).verdict == "retry"
    assert decide(istio({}, agent="require")).reason == "not-meshed"


def test_incoherent_whole_is_the_pods_error_if_the_pod_had_a_say():
    """Red: two listeners on one port are programmed, and the proxy answers for the wrong one."""
    overrides = {"outboundPort": 15006}
    with pytest.raises(CniError) as caught:
        decide(istio({**INJECTED, TRAFFIC + "excludeOutboundPorts": "1"}, redirection=overrides))
    assert caught.value.code == BAD_POD
    with pytest.raises(CniError) as caught:
        decide(istio(INJECTED, redirection=overrides))
    assert caught.value.code == 7
