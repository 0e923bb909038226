"""The nftables backend's transaction, as nft(8) sees it."""

import re
from typing import Any

import pytest

from cni_plugin.backends import nft_text
from cni_plugin.backends.common import Unsupported
from cni_plugin.backends.nftables import TABLE, Nftables
from cni_plugin.backends.rules import Chain, Rule, Ruleset, ruleset
from cni_plugin.kernel import nft
from cni_plugin.kernel.netns import entered
from cni_plugin.model.redirection import Redirection
from tests.backends.samples import DNS, EVERYTHING, FAMILIES, PLAIN, SAMPLES
from tests.lab.namespace import Namespace

BACKEND = Nftables()


def bytecode(namespace: Namespace) -> list[str]:
    """Return the table as nft decodes it from the kernel, expression by expression, sets' elements sorted."""
    lines = namespace.run("nft", "--debug=netlink", "list", "table", "inet", TABLE).splitlines()
    # auto-merge is nft's own note; the order of a hash set's elements is the kernel's.
    kept = [line for line in lines if "auto-merge" not in line]
    elements = sorted(line for line in kept if "element" in line)
    return elements + [line for line in kept if "element" not in line]


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("redirection", SAMPLES.values(), ids=SAMPLES)
def test_our_encoding_is_what_nft_makes_of_the_same_text(
    namespace: Namespace, redirection: Redirection, families: tuple[int, ...]
) -> None:
    """An expression is encoded otherwise than nft does, or `explain` prints other rules than are installed."""
    with entered(namespace.path):
        BACKEND.add(redirection, families)
    ours = bytecode(namespace)
    namespace.run("nft", "delete", "table", "inet", TABLE)
    namespace.run("nft", "-f", "-", text=nft_text.render(ruleset(redirection, families)))
    assert bytecode(namespace) == ours


@pytest.mark.parametrize("redirection", SAMPLES.values(), ids=SAMPLES)
def test_check_finds_nothing_after_add(namespace: Namespace, redirection: Redirection) -> None:
    """CHECK calls rules changed that nobody has touched: the kernel prints them otherwise than they were sent."""
    with entered(namespace.path):
        BACKEND.add(redirection, (4, 6))
        assert BACKEND.check(redirection, (4, 6)) == []


def handle(namespace: Namespace, chain: str, comment: str) -> str:
    """Return the handle of the first rule with `comment`."""
    listed = namespace.run("nft", "-a", "list", "chain", "inet", TABLE, chain)
    found = re.search(rf'comment "{comment}.*# handle (\d+)', listed)
    assert found, listed
    return found[1]


BREAKS: dict[str, tuple[Any, str]] = {
    "a rule deleted": (
        lambda n: n.run(
            "nft", "delete", "rule", "inet", TABLE, "captured", "handle", handle(n, "captured", "O10")
        ),
        "rule 'O10 included destination' in chain captured is missing",
    ),
    "a rule changed": (
        lambda n: n.run(
            *("nft", "replace", "rule", "inet", TABLE, "captured", "handle", handle(n, "captured", "O10")),
            'meta l4proto tcp counter redirect to :9 comment "O10 included destination"',
        ),
        "rule 'O10 included destination' in chain captured is changed",
    ),
    "a rule added": (
        lambda n: n.run("nft", "insert", "rule", "inet", TABLE, "captured", "tcp", "dport", "9", "return"),
        "rule '' in chain captured is not ours",
    ),
    "an element taken away": (
        lambda n: n.run("nft", "delete", "element", "inet", TABLE, "exclude_inbound_ports", "{ 15090 }"),
        "element of set exclude_inbound_ports is missing",
    ),
    "an element added": (
        lambda n: n.run("nft", "add", "element", "inet", TABLE, "exclude_inbound_ports", "{ 80 }"),
        "element of set exclude_inbound_ports is not ours",
    ),
    "the table asleep": (
        lambda n: n.run("nft", "-f", "-", text=f"table inet {TABLE} {{ flags dormant; }}\n"),
        f"table {TABLE} is changed",
    ),
    "a policy changed": (
        lambda n: n.run("nft", "-f", "-", text=f"chain inet {TABLE} nat_output {{ policy drop; }}\n"),
        "chain nat_output is changed",
    ),
    "the table gone": (
        lambda n: n.run("nft", "delete", "table", "inet", TABLE),
        "table inet mesh_redirect is missing",
    ),
    "the passthrough address gone": (
        lambda n: n.run("ip", "addr", "del", "::6/128", "dev", "lo"),
        "address ::6 on lo is missing",
    ),
    "loopback down": (lambda n: n.run("ip", "link", "set", "lo", "down"), "interface lo is down"),
}


@pytest.mark.parametrize(("breaks", "named"), BREAKS.values(), ids=BREAKS)
def test_check_names_what_was_broken(namespace: Namespace, breaks: Any, named: str) -> None:
    """CHECK believes a record instead of the kernel, or says that something is wrong but not what."""
    with entered(namespace.path):
        BACKEND.add(DNS, (4, 6))
        breaks(namespace)
        assert named in BACKEND.check(DNS, (4, 6))


def test_check_sees_rules_out_of_order(namespace: Namespace) -> None:
    """All rules are there, in another order, and CHECK is content: an exclusion after the redirect is none."""
    with entered(namespace.path):
        BACKEND.add(DNS, (4, 6))
        number = handle(namespace, "nat_prerouting", "I4")
        namespace.run("nft", "delete", "rule", "inet", TABLE, "nat_prerouting", "handle", number)
        again = (
            'tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15006 comment "I4 to the proxy"'
        )
        namespace.run("nft", "insert", "rule", "inet", TABLE, "nat_prerouting", again)
        assert BACKEND.check(DNS, (4, 6)) == ["rules are not in their order"]


def test_check_sees_tproxy_routes(namespace: Namespace) -> None:
    """tproxy's policy route is gone, traffic with it, and CHECK looks at rules only."""
    redirection = PLAIN.replace(inbound="tproxy")
    with entered(namespace.path):
        BACKEND.add(redirection, (4, 6))
        namespace.run("ip", "-6", "rule", "del", "fwmark", "1337", "lookup", "133")
        namespace.run("ip", "route", "flush", "table", "133")
        assert BACKEND.check(redirection, (4, 6)) == [
            "ip -4 route local default dev lo table 133 is missing",
            "ip -6 rule fwmark 0x539 lookup 133 is missing",
        ]


@pytest.mark.parametrize(
    "rule",
    [
        ("from", "192.0.2.1", "fwmark", "1337", "lookup", "133", "priority", "32765"),
        ("fwmark", "1337", "iif", "lo", "lookup", "133", "priority", "32765"),
        ("not", "fwmark", "1337", "lookup", "133", "priority", "32765"),
        ("fwmark", "1337", "lookup", "133", "priority", "40000"),
        ("fwmark", "1337/0xffff0", "lookup", "133", "priority", "32765"),
    ],
    ids=" ".join,
)
def test_check_takes_no_other_route_for_tproxys(namespace: Namespace, rule: tuple[str, ...]) -> None:
    """tproxy's rule or route matches less than it did, traffic is lost, and CHECK finds something like it."""
    redirection = PLAIN.replace(inbound="tproxy")
    with entered(namespace.path):
        BACKEND.add(redirection, (4, 6))
        for version in ("-4", "-6"):
            namespace.run("ip", version, "route", "flush", "table", "133")
            namespace.run("ip", version, "rule", "del", "fwmark", "1337", "lookup", "133")
        namespace.run("ip", "-4", "route", "add", "local", "192.0.2.0/24", "dev", "lo", "table", "133")
        namespace.run("ip", "-6", "route", "add", "local", "2001:db8::/32", "dev", "lo", "table", "133")
        namespace.run("ip", "-4", "rule", "add", *rule)
        assert BACKEND.check(redirection, (4, 6)) == [
            "ip -4 route local default dev lo table 133 is missing",
            "ip -4 rule fwmark 0x539 lookup 133 is missing",
            "ip -6 route local default dev lo table 133 is missing",
            "ip -6 rule fwmark 0x539 lookup 133 is missing",
        ]


def test_a_refused_transaction_leaves_nothing(namespace: Namespace) -> None:
    """Half of a batch stays when the kernel refuses one of its messages, and the error does not say which."""
    batch = nft.Batch(TABLE)
    batch.add_table()
    batch.add_chain("here")
    batch.add_rule("here", nft.verdict("goto", "nowhere"), "O1 a rule to nowhere")
    with entered(namespace.path), pytest.raises(OSError, match="rule 'O1 a rule to nowhere' in chain here"):
        batch.commit()
    assert namespace.run("nft", "list", "ruleset") == ""


def test_a_failed_add_undoes_what_it_made_before_the_rules(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without an expression: the next backend is not tried, or routes of this one stay behind."""
    # Up and down first: what the kernel itself keeps of a loopback that was ever up is not ours.
    namespace.run("ip", "link", "set", "lo", "up")
    namespace.run("ip", "link", "set", "lo", "down")
    before = namespace.run("ip", "addr") + namespace.run("ip", "rule")
    # The real kernel is asked for an expression that no kernel has.
    monkeypatch.setattr(nft, "COUNTER", nft.COUNTER.replace(b"counter", b"kounter"))
    with entered(namespace.path), pytest.raises(Unsupported, match="No such file"):
        BACKEND.add(PLAIN.replace(inbound="tproxy"), (4, 6))
    assert namespace.run("ip", "addr") + namespace.run("ip", "rule") == before
    assert namespace.run("nft", "list", "ruleset") == ""


def test_add_replaces_what_is_there(namespace: Namespace) -> None:
    """A second ADD stacks rules, or leaves those of a family that is no longer redirected."""
    with entered(namespace.path):
        BACKEND.add(EVERYTHING, (4, 6))
        BACKEND.add(DNS, (4,))
        assert BACKEND.check(DNS, (4,)) == []
    first = namespace.run("nft", "-s", "list", "ruleset")
    with entered(namespace.path):
        BACKEND.add(DNS, (4,))
    assert namespace.run("nft", "-s", "list", "ruleset") == first


def test_other_tables_are_left_alone(namespace: Namespace) -> None:
    """DEL or a second ADD takes away a table that somebody else has made in the pod."""
    namespace.run("nft", "add", "table", "inet", "somebody")
    with entered(namespace.path):
        BACKEND.add(PLAIN, (4, 6))
        BACKEND.add(PLAIN, (4, 6))
        BACKEND.delete(PLAIN)
    assert namespace.run("nft", "list", "tables") == "table inet somebody\n"


def test_every_verdict_is_encoded() -> None:
    """A verdict in the rules that a backend does not know is found at ADD, in production."""
    unknown = Ruleset(
        families=(4,),
        chains=(Chain(name="c", table="nat", hook="output", rules=(Rule(row="O1", verdict=("dance", 1)),)),),
    )
    with pytest.raises(ValueError, match="dance"):
        nft_text.render(unknown)
