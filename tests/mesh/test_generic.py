"""The generic dialect: no mesh, what people wrote and nothing else, with or without Kubernetes."""

import pytest

from cni_plugin.model.errors import BAD_POD, INVALID_ENVIRONMENT, INVALID_NETCONF, CniError
from cni_plugin.model.redirection import Redirection
from tests.mesh.cases import decide, netconf, spans

UIDS = {"proxyUids": [101]}
SWITCH, OBJECT = "mesh-redirect.io/redirect", "mesh-redirect.io/redirection"


def generic(redirection=None, cni_args=None, annotations=None, **more):
    """Return a generic netconf with its four places to write in."""
    return netconf(
        "generic",
        redirection,
        cni_args={} if cni_args is None else {"mesh-redirect": cni_args},
        pod_annotations=annotations,
        **more,
    )


def test_netconf_alone_redirects_without_kubernetes():
    """Red: podman, Nomad and cnitool cannot use the plugin."""
    decision = decide(generic(UIDS), {})
    assert (decision.verdict, decision.reason) == ("redirect", "configured")
    assert decision.redirection == Redirection(proxy_uids=spans(101))
    assert decision.origins["proxyUids"] == "netconf redirection.proxyUids"
    assert decision.origins["outboundPort"] == "built-in default"
    assert decision.unknown == ()


def test_nothing_configured_passes():
    """Red: a node-wide conflist redirects containers nobody configured."""
    assert decide(generic(), {}).reason == "not-configured"
    assert decide(generic(annotations={}), {}).reason == "not-configured"
    assert decide(generic(cni_args={}), {}).reason == "not-configured"


@pytest.mark.parametrize(
    ("conf", "args", "origin"),
    [
        (generic(cni_args={"redirection": UIDS}), {}, "args.cni mesh-redirect.redirection"),
        (generic(cni_args={"redirection": '{"proxyUids": [101]}'}), {}, "args.cni mesh-redirect.redirection"),
        (generic(), {"MESH_REDIRECTION": '{"proxyUids":[101]}'}, "CNI_ARGS MESH_REDIRECTION"),
        (generic(annotations={OBJECT: '{"proxyUids":[101]}'}), {}, f"annotation {OBJECT}"),
    ],
)
def test_each_place_alone_configures(conf, args, origin):
    """Red: a container cannot bring its own redirection by one of the documented ways."""
    decision = decide(conf, args)
    assert decision.redirection == Redirection(proxy_uids=spans(101))
    assert decision.origins["proxyUids"] == origin


def test_places_win_over_each_other_field_by_field():
    """Red: a more specific place does not win, or wins more than the fields it names."""
    conf = generic(
        {"proxyUids": [1], "outboundPort": 1111, "inboundPort": 2222, "tunnelPort": 3333, "dnsPort": 4444},
        cni_args={"redirection": {"outboundPort": 1112, "inboundPort": 2223, "tunnelPort": 3334}},
        annotations={OBJECT: '{"tunnelPort": 3336}'},
    )
    found = decide(conf, {"MESH_REDIRECTION": '{"inboundPort": 2224, "tunnelPort": 3335}'}).redirection
    ports = (found.dns_port, found.outbound_port, found.inbound_port, found.tunnel_port)
    assert ports == (4444, 1112, 2224, 3336)


@pytest.mark.parametrize(
    ("conf", "args"),
    [
        (generic(UIDS, cni_args={"redirect": False}), {}),
        (generic(UIDS, cni_args={"redirect": "false"}), {}),
        (generic(UIDS, cni_args={"redirect": True}), {"MESH_REDIRECT": "false"}),
        (generic(UIDS, annotations={SWITCH: "false"}), {"MESH_REDIRECT": "true"}),
        (generic(UIDS), {"MESH_REDIRECT": "0"}),
        (generic(cni_args={"redirect": False}), {}),
    ],
)
def test_the_most_specific_switch_opts_out(conf, args):
    """Red: a container that says no is redirected."""
    assert decide(conf, args).reason == "opted-out"


@pytest.mark.parametrize(
    ("conf", "args"),
    [
        (generic(UIDS, cni_args={"redirect": False}), {"MESH_REDIRECT": "true"}),
        (generic(UIDS, annotations={SWITCH: "true"}), {"MESH_REDIRECT": "false"}),
    ],
)
def test_the_most_specific_switch_opts_in_again(conf, args):
    """Red: a less specific no wins over a more specific yes."""
    assert decide(conf, args).verdict == "redirect"


def test_opting_in_to_nothing_is_an_error():
    """Red: "redirect: true" without a redirection is a silent bypass."""
    with pytest.raises(CniError) as caught:
        decide(generic(cni_args={"redirect": True}), {})
    assert "proxyUids" in caught.value.msg


@pytest.mark.parametrize(
    ("conf", "args", "code", "named"),
    [
        (generic(cni_args={"redirection": 7}), {}, INVALID_NETCONF, "args.cni mesh-redirect"),
        (generic(cni_args={"redirection": {"inboundPort": 0}}), {}, INVALID_NETCONF, "inboundPort"),
        (generic(cni_args={"redirect": "x"}), {}, INVALID_NETCONF, "args.cni mesh-redirect.redirect"),
        (generic(cni_args="yes"), {}, INVALID_NETCONF, "args.cni mesh-redirect"),
        (generic(), {"MESH_REDIRECTION": "{"}, INVALID_ENVIRONMENT, "CNI_ARGS MESH_REDIRECTION"),
        (generic(), {"MESH_REDIRECT": "x"}, INVALID_ENVIRONMENT, "CNI_ARGS MESH_REDIRECT"),
        (generic(annotations={OBJECT: "{}}"}), {}, BAD_POD, OBJECT),
        (generic(annotations={OBJECT: '{"a": 1, "a": 2}'}), {}, BAD_POD, OBJECT),
        (generic(annotations={OBJECT: '{"colour": "red"}'}), {}, BAD_POD, f"annotation {OBJECT}.colour"),
        (generic(annotations={OBJECT: '{"excludeInterfaces": ["a;b"]}'}), {}, BAD_POD, "excludeInterfaces"),
        (generic(annotations={OBJECT: '"\ud800"'}), {}, BAD_POD, OBJECT),
        (generic(annotations={SWITCH: ""}), {}, BAD_POD, SWITCH),
    ],
)
def test_unreadable_value_is_an_error_of_its_place(conf, args, code, named):
    """Red: a bad value is ignored, or the error does not say in which of the four places it is."""
    with pytest.raises(CniError) as caught:
        decide(conf, args)
    assert caught.value.code == code
    assert named in caught.value.msg


def test_namespaces_and_agent_hold_for_it_too():
    """Red: kube-system pods are redirected where generic is used on Kubernetes."""
    conf = generic(UIDS, exclude_namespaces=("shop",))
    assert decide(conf).reason == "excluded-namespace"
    assert decide(generic(UIDS, agent="require"), {}).reason == "agent-required"
    assert decide(generic(agent="require"), {}).reason == "not-configured"


def test_unknown_mesh_names_those_there_are():
    """Red: a typo in "mesh" lets every pod bypass it."""
    with pytest.raises(CniError) as caught:
        decide(netconf("nosuch"), {})
    assert caught.value.code == INVALID_NETCONF
    assert "'nosuch'" in caught.value.msg
    assert "generic" in caught.value.msg
