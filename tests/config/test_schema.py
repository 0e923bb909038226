"""The two descriptions of the netconf: the plugin's reader and the one for people."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cni_plugin.config import netconf, schema
from cni_plugin.config.fields import FIELDS
from cni_plugin.model import parse
from cni_plugin.model.errors import CniError
from cni_plugin.model.redirection import Redirection
from cni_plugin.model.request import Netconf

CONFLIST = {"cniVersion": "1.0.0", "name": "net"}

WORD = [
    *["*", "off", "all", "redirect", "tproxy", "pass", "reject", "auto", "ipv4", "dual", "tcp", "udp", "any"],
    *["debug", "info", "require", "never", "nftables", "iptables", "ebpf", "1.0.0", "0.2.0", ""],
]
LABEL = ["a", "a-b", "-a", "a-", "a" * 63, "a" * 64, "A", "a_b", "a.b", "0", "kube-system", "a\n"]
PATH = [
    "/run/x",
    "/",
    "run/x",
    "/a\0b",
    "/a\nb",
    "/" + "a" * 106,
    "/" + "a" * 107,
    "/" + "a" * 5000,
    "/ü",
    "/\ud800",
]
WORDS, PATHS, LABELS = map(st.sampled_from, (WORD, PATH, LABEL))
PORTS = st.one_of(
    st.integers(0, 65535),
    st.builds("{}-{}".format, st.integers(0, 65535), st.integers(0, 65535)),
    st.sampled_from(
        ["80", "0x50", "+80", "8_0", " 80", "80-", "-80", "٣", "99999999999", "80-90-100", "80\n", "00080"]
    ),
)
ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        ["::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.01", "10.1", "::", "a.b.c.d", "10.0.0.1\0", "1::1\n"]
    ),
)
NETWORKS = st.one_of(
    ADDRESSES,
    st.builds("{}/{}".format, ADDRESSES, st.integers(-1, 130)),
    st.sampled_from(["10.0.0.0/08", "10.0.0.0/+8", "10.0.0.0/8/8", "/8", "10.0.0.0/", "::ffff:0:0/95", "*"]),
)
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,16}\+?", fullmatch=True),
    st.sampled_from(
        [
            "a" * 15,
            "a" * 16,
            "a" * 14 + "+",
            "a" * 15 + "+",
            ".",
            "..",
            "+",
            "a+b",
            "eth0; drop",
            "eth0\n",
            "-j",
            "é",
            "/",
            "eth0:1",
        ]
    ),
)
INTEGERS = st.one_of(
    st.integers(), st.sampled_from([0, 1, 252, 253, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2])
)
EXCLUSIONS = st.dictionaries(
    st.sampled_from(["uids", "ports", "protocol", "gids"]), st.one_of(WORDS, st.lists(PORTS, max_size=3))
)
ITEMS = st.one_of(
    PORTS,
    NETWORKS,
    NAMES,
    WORDS,
    INTEGERS,
    EXCLUSIONS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.one_of(
    WORDS, INTEGERS, PATHS, NAMES, ADDRESSES, st.none(), st.booleans(), st.floats(), st.text(max_size=8),
    st.lists(PORTS, max_size=5), st.lists(NETWORKS, max_size=5), st.lists(ADDRESSES, max_size=3), st.lists(NAMES, max_size=4),
    st.lists(EXCLUSIONS, max_size=3), st.lists(WORDS, max_size=3), st.lists(ITEMS, max_size=3),
    st.dictionaries(st.text(max_size=3), ITEMS, max_size=2),
)  # fmt: skip
EDGES = st.sampled_from(
    [0, 1, 2, 252, 253, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, True, 1.0, "1"]
)
# Values a reader may well accept: random ones seldom come near a limit.
OF_ITS_KIND = {
    parse.port: EDGES,
    parse.tunnel_port: EDGES,
    parse.mark: EDGES,
    parse.table: EDGES,
    parse.boolean: EDGES,
    parse.ports: st.one_of(WORDS, st.lists(st.one_of(PORTS, EDGES), max_size=3)),
    parse.ids: st.one_of(WORDS, st.lists(st.one_of(PORTS, EDGES), max_size=3)),
    parse.prefixes: st.one_of(WORDS, st.lists(NETWORKS, max_size=3)),
    parse.names: st.lists(NAMES, max_size=3),
    parse.servers: st.one_of(WORDS, st.lists(ADDRESSES, max_size=3)),
    parse.one_per_family: st.one_of(ADDRESSES, st.lists(ADDRESSES, max_size=3)),
    parse.protocols: st.lists(st.sampled_from(["tcp", "udp", "any"]), max_size=3),
    parse.uid_exclusions: st.lists(
        st.fixed_dictionaries(
            {"uids": st.lists(st.one_of(PORTS, EDGES), max_size=2)},
            optional={"ports": st.lists(PORTS, max_size=2), "protocol": WORDS, "gids": WORDS},
        ),
        max_size=2,
    ),
}
REDIRECTIONS = st.one_of(
    st.dictionaries(st.sampled_from([*FIELDS, "proxy_uids", "unknown"]), VALUES, max_size=2), VALUES
)


def by_reader(document):
    """Return what the plugin's reader makes of the written fields, or None if it refuses them."""
    try:
        found = netconf.netconf(document)
    except CniError:
        return None
    written = {field: getattr(found, field) for key, (field, _) in netconf.OPTIONS.items() if key in document}
    return {"cni_version": found.cni_version, "name": found.name, **written}


def by_model(document):
    """Return the same of the pydantic model."""
    try:
        found = schema.validate(document).given()
    except ValidationError:
        return None
    if "redirection" in found:
        found["redirection"] = found["redirection"].given()
    return {field: value for field, value in found.items() if field not in ("type", "capabilities")}


@settings(max_examples=400, deadline=None)
@given(REDIRECTIONS)
def test_reader_and_model_agree_on_redirection(redirection):
    """Red: `config check` passes a redirection the plugin refuses, or reads another value from it."""
    document = {**CONFLIST, "redirection": redirection}
    assert by_reader(document) == by_model(document)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["cniVersion", "name", "type", "unknown", *netconf.OPTIONS]), VALUES, max_size=3
    )
)
def test_reader_and_model_agree_on_the_rest(document):
    """Red: `config check` passes a netconf the plugin refuses, or reads another value from it."""
    document = {**CONFLIST, **document}
    assert by_reader(document) == by_model(document)


@pytest.mark.parametrize("camel", FIELDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_each_field_agrees(camel, data):
    """Red: one field's type in the model is narrower or wider than its reader."""
    kind = OF_ITS_KIND.get(FIELDS[camel][1], st.one_of(WORDS, EDGES, st.booleans()))
    document = {**CONFLIST, "redirection": {camel: data.draw(kind)}}
    assert by_reader(document) == by_model(document)


@pytest.mark.parametrize("key", netconf.OPTIONS)
def test_each_option_agrees(key):
    """Red: one option's type in the model is narrower or wider than its reader."""
    for value in [*WORD, *PATH, *LABEL]:
        for shape in (value, [value], [value, value], {value: value}):
            document = {**CONFLIST, key: shape}
            assert by_reader(document) == by_model(document), document


def test_all_fields_are_in_all_tables():
    """Red: a field of Redirection or Netconf cannot be written, or is not described."""
    assert {snake for snake, _ in FIELDS.values()} == set(Redirection().fields())
    assert set(schema.RedirectionModel.model_fields) == set(Redirection().fields())
    from_runtime = {"cni_version", "prev_result", "pod_annotations", "cni_args", "valid_attachments"}
    assert {snake for snake, _ in netconf.OPTIONS.values()} | {"name"} == set(
        Netconf.__annotations__
    ) - from_runtime
    written = {key for key in schema.json_schema()["properties"] if key not in ("type", "capabilities")}
    assert written == {*netconf.OPTIONS, "cniVersion", "name"}


def test_documented_defaults_are_the_readers():
    """Red: the schema promises a default that the plugin does not take."""
    found = netconf.netconf(CONFLIST)
    for key, (field, read) in netconf.OPTIONS.items():
        described = schema.json_schema()["properties"][key]
        if "default" in described:
            assert read(key, described["default"]) == getattr(found, field), key


def test_schema_is_for_people():
    """Red: the schema has a field without a description, or allows null where the plugin does not."""
    exported = schema.json_schema()
    for described in (exported, *exported["$defs"].values()):
        for key, field in described["properties"].items():
            assert field["description"], key
            assert field.get("default", "none") is not None, key
    assert exported["$defs"]["RedirectionModel"]["additionalProperties"] is False
