"""The iptables backend's text, as iptables-save prints it, by both of its appliers."""

import pytest

from cni_plugin.backends import attach, iptables, python_iptables, xtables
from cni_plugin.backends.common import Unsupported
from cni_plugin.backends.iptables import Iptables, lines, ours, render
from cni_plugin.backends.rules import ruleset
from cni_plugin.config import fields
from cni_plugin.kernel.netns import entered
from cni_plugin.model.redirection import Redirection
from cni_plugin.model.request import Netconf
from tests.backends.samples import DNS, EVERYTHING, FAMILIES, PLAIN, SAMPLES
from tests.lab.namespace import Namespace
from tests.lab.need import need

SAVE = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}
APPLIERS = {
    "iptables-restore": xtables.Restore("-legacy"),
    "python-iptables": python_iptables.PythonIptables(),
}
APPLIER = pytest.mark.parametrize("applier", APPLIERS.values(), ids=APPLIERS)


@pytest.fixture(autouse=True)
def legacy() -> None:
    """Run only where the kernel has legacy tables."""
    need("iptables")


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("redirection", SAMPLES.values(), ids=SAMPLES)
def test_the_text_is_what_iptables_save_prints(
    namespace: Namespace, redirection: Redirection, families: tuple[int, ...]
) -> None:
    """`explain` prints other rules than are installed, or CHECK needs a scratch namespace for every pod."""
    with entered(namespace.path):
        Iptables("/nowhere", APPLIERS["iptables-restore"]).add(redirection, families)
    for family in (4, 6):
        wanted = lines(ruleset(redirection, families), family) if family in families else {}
        assert ours(namespace.run(SAVE[family])) == wanted


@pytest.mark.parametrize(
    "redirection", [DNS, EVERYTHING.replace(inbound="tproxy")], ids=["dns", "everything"]
)
def test_python_iptables_installs_the_same_rules(namespace: Namespace, redirection: Redirection) -> None:
    """The host without iptables-restore gets other rules than the host with it."""
    backend = Iptables("/nowhere", APPLIERS["python-iptables"])
    with entered(namespace.path):
        backend.add(redirection, (4, 6))
        for family in (4, 6):
            assert ours(namespace.run(SAVE[family])) == lines(ruleset(redirection, (4, 6)), family)
        assert backend.check(redirection, (4, 6)) == []
        backend.delete(redirection)
    assert "MESH_REDIRECT" not in namespace.run(SAVE[4]) + namespace.run(SAVE[6])


@APPLIER
def test_check_names_what_was_broken(namespace: Namespace, applier: "xtables.Applier") -> None:
    """CHECK believes a record instead of the kernel, or says that something is wrong but not what."""
    backend = Iptables("/nowhere", applier)
    with entered(namespace.path):
        backend.add(DNS, (4, 6))
        namespace.run("iptables-legacy", "-t", "nat", "-D", "OUTPUT", "-j", "MESH_REDIRECT_OUTPUT")
        namespace.run("ip6tables-legacy", "-t", "nat", "-A", "MESH_REDIRECT_CAPTURED", "-j", "ACCEPT")
        found = backend.check(DNS, (4, 6))
    assert found == [
        "IPv4 table nat: -A OUTPUT -j MESH_REDIRECT_OUTPUT is missing",
        "IPv6 table nat: -A MESH_REDIRECT_CAPTURED -j ACCEPT is not ours",
    ]


def test_check_sees_rules_out_of_order(namespace: Namespace) -> None:
    """All rules are there, in another order, and CHECK is content: an exclusion after the redirect is none."""
    backend = Iptables("/nowhere", APPLIERS["iptables-restore"])
    with entered(namespace.path):
        backend.add(DNS, (4,))
        rule = next(line for line in lines(ruleset(DNS, (4,)), 4)["nat"] if "PREROUTING -i lo" in line)
        arguments = rule.replace('"', "").split(" --comment ")
        words = [*arguments[0].split()[1:], "--comment", "I5 not captured inbound", "-j", "RETURN"]
        namespace.run("iptables-legacy", "-t", "nat", "-D", *words)
        namespace.run("iptables-legacy", "-t", "nat", "-A", *words)
        assert backend.check(DNS, (4,)) == ["IPv4 table nat: rules are not in their order"]


@APPLIER
def test_if_one_family_fails_the_other_is_put_back(namespace: Namespace, applier: "xtables.Applier") -> None:
    """A failed ADD leaves IPv4 redirected and IPv6 not: half of the pod's traffic bypasses the mesh."""
    backend = Iptables("/nowhere", applier)
    with entered(namespace.path):
        backend.add(PLAIN, (4, 6))
        before = [ours(namespace.run(SAVE[family])) for family in (4, 6)]
        spoilt = lines(ruleset(DNS, (4, 6)), 6)
        spoilt["nat"].append("-A MESH_REDIRECT_OUTPUT -m nosuchmatch -j RETURN")
        with pytest.raises(OSError, match="IPv6"):
            backend._replace({4: lines(ruleset(DNS, (4, 6)), 4), 6: spoilt})
    assert [ours(namespace.run(SAVE[family])) for family in (4, 6)] == before


def test_rules_of_others_are_left_alone(namespace: Namespace) -> None:
    """DEL or a second ADD takes away a rule that somebody else has made in the pod."""
    namespace.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
    before = [line for line in namespace.run(SAVE[4]).splitlines() if line.startswith("-A")]
    backend = Iptables("/nowhere", APPLIERS["iptables-restore"])
    with entered(namespace.path):
        backend.add(EVERYTHING, (4, 6))
        backend.add(DNS, (4, 6))
        backend.delete(DNS)
    assert [line for line in namespace.run(SAVE[4]).splitlines() if line.startswith("-A")] == before


def test_ports_are_not_cut_at_fifteen() -> None:
    """xt_multiport holds 15 ports, a range as two: the sixteenth would be silently dropped."""
    spans = tuple((port, port + 1) for port in range(100, 200, 3))
    text = render(ruleset(PLAIN.replace(exclude_outbound_ports=spans), (4,)), 4)
    listed = [word for line in text.splitlines() if "O2" in line and " tcp " in line for word in line.split()]
    chunks = [word for word in listed if word[0].isdigit()]
    assert ",".join(chunks) == ",".join(f"{low}:{high}" for low, high in spans)
    assert max(chunk.count(":") for chunk in chunks) == 7


def test_chain_names_fit() -> None:
    """A chain's name longer than xtables takes (28 characters) fails the ADD of the pod that needs it."""
    text = render(ruleset(EVERYTHING.replace(inbound="tproxy"), (4,)), 4)
    names = {line.split()[0][1:] for line in text.splitlines() if line.startswith(":")}
    assert len(names) > 8
    assert max(map(len, names)) <= 28


def test_python_iptables_is_tried_once_a_boot(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ADD pays half a second for the trial, or a trial that failed is not believed."""
    asked = []
    trial = python_iptables._trial
    monkeypatch.setattr(python_iptables, "_trial", lambda: asked.append(1) or trial())
    assert python_iptables.why_not(str(tmp_path)) == ""
    assert python_iptables.why_not(str(tmp_path)) == ""
    assert len(asked) == 1
    (tmp_path / "python-iptables").write_text("another boot\nold reason")
    assert python_iptables.why_not(str(tmp_path)) == ""
    assert len(asked) == 2


def test_what_python_iptables_loses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libxtables that drops a rule's option, as 1.8.11 and newer do here, is taken for a working one."""
    monkeypatch.setattr(
        python_iptables, "_TRIAL", python_iptables._TRIAL.replace("--to-ports 6", "--to-ports 6-06")
    )
    assert "loses part of a rule" in python_iptables._trial()


def test_without_any_way_to_write_rules_the_reason_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without iptables gets a traceback, or the next backend is not tried."""
    monkeypatch.setattr(iptables.xtables.process, "DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(python_iptables.sys, "path", [])
    with pytest.raises(Unsupported, match=r"no working iptables-restore .*python-iptables is not installed"):
        Iptables(str(tmp_path)).probe(PLAIN, (4, 6))


def test_tools_lost_since_add_do_not_keep_the_sandbox(
    namespace: Namespace, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEL fails for ever on a host whose iptables was removed after ADD, and the pod is never gone."""
    conf = Netconf(cni_version="1.1.0", name="n", backends=("iptables",), state_dir=str(tmp_path))
    with entered(namespace.path):
        made = attach.replace(conf, PLAIN, (4, 6), None)
        record = {**made, "redirection": fields.to_json(PLAIN), "netns": namespace.path}
        monkeypatch.setattr(iptables.xtables.process, "DIRECTORIES", (str(tmp_path),))
        monkeypatch.setattr(python_iptables.sys, "path", [])
        attach.remove(conf, record)
