"""The mistakes people make in a conflist: `config check` names each, in the words ADD and `explain` would use."""

import json

import pytest

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
OWNED = {"proxyUids": [1337]}
PORTS = 'a list of ports 0..65535 or ranges "8000-8100", or "*"'

# Our object in the conflist, and what the message has to say: field, value, expectation.
REFUSED = [
    ({"redirection": {**OWNED, "excludeOutboundPort": [80]}}, "redirection.excludeOutboundPort: no such field (its value: [80]), expected perhaps excludeOutboundPorts"),
    ({"redirection": {**OWNED, "ExcludeOutboundPorts": [80]}}, "expected perhaps excludeOutboundPorts"),
    ({"redirection": {"proxy_uids": [1337]}}, "expected perhaps proxyUids"),
    ({"redirection": {"proxyGid": [1337]}}, "expected perhaps proxyGids"),
    ({"redirection": {**OWNED, "colour": "red"}}, "expected one of proxyUids, proxyGids, "),
    ({"redirection": {**OWNED, "excludeOutboundPortsForUids": [{"uid": [5]}]}}, "excludeOutboundPortsForUids[0].uid: no such field (its value: [5]), expected one of uids, ports, protocol"),
    ({"redirection": {**OWNED, "excludeOutboundPorts": 80}}, f"80 is not valid, expected {PORTS}"),
    ({"redirection": {**OWNED, "excludeOutboundPorts": "80,443"}}, f"'80,443' is not valid, expected {PORTS}"),
    ({"redirection": {**OWNED, "excludeOutboundPorts": ["9000-8000"]}}, "'9000-8000' is not valid"),
    ({"redirection": {**OWNED, "outboundPort": "15001"}}, "'15001' is not valid, expected an integer 1..65535"),
    ({"redirection": {**OWNED, "excludeOutboundCidrs": ["10.0.0.0/33"]}}, "'10.0.0.0/33' is not valid"),
    ({"redirection": {**OWNED, "dropInvalid": "true"}}, "'true' is not valid, expected true or false"),
    ({"redirection": {**OWNED, "dns": True}}, 'true is not valid, expected "off", "all"'),
    ({"redirection": {**OWNED, "families": "ipv6"}}, "'ipv6' is not valid"),
    ({"redirection": {"proxyUids": ["envoy"]}}, "proxyUids[0]: 'envoy' is not valid"),
    ({"redirection": ["proxyUids"]}, "redirection: ['proxyUids'] is not valid, expected an object"),
    ({"redirection": {"outboundPort": 15001}}, "expected proxyUids, proxyGids or excludeOutboundGids"),
    ({"redirection": {**OWNED, "inboundPort": 15001}}, "expected another port than inboundPort"),
    ({"mesh": "nosuch"}, "mesh: 'nosuch' is not valid, expected one of generic, "),
    ({"mesh": None}, "mesh: null is not valid"),
    ({"backends": ["nftable"]}, "backends[0]: 'nftable' is not valid"),
    ({"backends": "nftables"}, "'nftables' is not valid, expected a list"),
    ({"excludeNamespaces": "kube-system"}, "'kube-system' is not valid, expected a list of namespaces"),
    ({"agent": "required"}, "agent: 'required' is not valid"),
    ({"stateDir": "run/x"}, "stateDir: 'run/x' is not valid, expected an absolute path"),
]  # fmt: skip

# What the plugin takes without a word, and what `config check` and `explain` say nevertheless.
REMARKED = [
    ({"mesh": "istio", "capabilities": {}}, f'add "capabilities": {{"{ANNOTATIONS}": true}}'),
    ({"mesh": "istio", "capabilities": {ANNOTATIONS: False}}, 'ADD answers "try again later"'),
    ({"excludeNamespace": ["kube-system"]}, "did you mean excludeNamespaces?"),
    ({"proxyUids": [1337]}, 'proxyUids: ignored here; it belongs in "redirection"'),
]


def conflist(ours, before=({"type": "bridge"},), after=()):
    """Return the text of a conflist with our object in it."""
    ours = {"type": "mesh-redirect", "capabilities": {ANNOTATIONS: True}, **ours}
    return json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [*before, ours, *after]})


@pytest.mark.parametrize(("ours", "told"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_told_alike_by_check_and_explain(command, ours, told):
    """Red: the check passes what every pod's ADD refuses, or speaks of other things than field, value and expectation."""
    checked = command("config", "check", "-", stdin=conflist(ours))
    explained = command("explain", "--netconf", "-", stdin=conflist(ours))
    assert (checked.returncode, explained.returncode) == (1, 2)
    assert told in checked.stdout
    assert explained.stderr.removeprefix("mesh-redirect: ") == checked.stdout.removeprefix("-: ")


@pytest.mark.parametrize(
    ("ours", "told"), REMARKED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_hardly_meant_is_a_warning(command, ours, told):
    """Red: a mistyped option or a missing capability is found out by the first pod that is not in the mesh."""
    checked = command("config", "check", "-", stdin=conflist(ours))
    assert checked.returncode == 0
    assert checked.stdout.startswith("-: warning: ")
    assert told in checked.stdout
    explained = command("explain", "--netconf", "-", "--json", stdin=conflist(ours))
    (warning,) = json.loads(explained.stdout)["warnings"]
    assert f"-: warning: {warning}\n" in checked.stdout


def test_a_place_in_the_chain_is_remarked(command):
    """Red: somebody puts the plugin first, or twice, and nobody says what comes of it."""
    first = command("config", "check", "-", stdin=conflist({}, before=(), after=({"type": "bridge"},)))
    assert "put it last" in first.stdout
    twice = command("config", "check", "-", stdin=conflist({}, after=({"type": "mesh-redirect"},)))
    assert "2 times" in twice.stdout


def test_another_plugins_object_is_not_ours(command):
    """Red: the check calls some other plugin's configuration valid."""
    ran = command("config", "check", "-", stdin='{"type": "bridge"}')
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "'bridge' is not valid, expected \"mesh-redirect\"" in ran.stderr


def test_what_runtimes_add_is_not_remarked(command):
    """Red: a good conflist is called doubtful because of keys that are not ours."""
    ours = {"mesh": "istio", "dns": {}, "ipam": {}, "ipMasq": False, "args": {}, "other.example/key": 1}
    assert command("config", "check", "-", stdin=conflist(ours)).stdout == "-: valid\n"


def test_a_mistyped_annotation_is_remarked(command):
    """Red: an exclusion that the pod's author believes in is not there, and explain does not say why."""
    given = [
        "--annotation",
        "traffic.sidecar.istio.io/excludeOutboundPort=80",
        "--annotation",
        "other.example/key=1",
    ]
    ran = command("explain", "--netconf", "-", "--json", *given, stdin=conflist({"mesh": "istio"}))
    (warning,) = json.loads(ran.stdout)["warnings"]
    assert warning.endswith("is not read; did you mean traffic.sidecar.istio.io/excludeOutboundPorts?")
