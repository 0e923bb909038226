"""What a backend leaves in the netns, as nft, iptables-legacy-save, ip and conntrack list it."""

from typing import Any

import pytest

from cni_plugin.model.redirection import ANYWHERE, Redirection, UidExclusion
from tests.contract.table import BASE, MANY_PORTS, SERVICE, cidrs
from tests.lab import effects
from tests.lab.topology import Pod

FULL = BASE.replace(
    dns=ANYWHERE,
    drop_invalid=True,
    udp443="reject",
    tunnel_port=15008,
    exclude_inbound_cidrs=SERVICE,
    exclude_inbound_ports=((15020, 15021), (15090, 15090)),
    exclude_outbound_cidrs=SERVICE,
    exclude_outbound_ports=MANY_PORTS,
    exclude_outbound_ports_for_uids=(UidExclusion(uids=((5, 6),), ports=((25, 25),), protocols=("tcp",)),),
    exclude_interfaces=("net1",),
    virtual_interfaces=("tap+",),
    include_outbound_gids=((900, 2000),),
)
VARIANTS = pytest.mark.parametrize(
    "redirection",
    [
        BASE,
        FULL,
        FULL.replace(inbound="tproxy"),
        FULL.replace(inbound="tproxy", tproxy_mark=0x400, tproxy_table=77),
        BASE.replace(passthrough_sources=cidrs("10.50.0.3/32", "fd00:50::3/128")),
        BASE.replace(inbound="off", outbound="off"),
    ],
    ids=["base", "full", "tproxy", "tproxy-other-table", "own-address-passes", "off"],
)
FAMILIES = pytest.mark.parametrize("families", [(4, 6), (4,), (6,)], ids=["dual", "ipv4", "ipv6"])


def rules(listed: dict[str, Any]) -> tuple[Any, Any]:
    """Return the firewall's part of a listing."""
    return listed["nft"], listed["iptables"]


@VARIANTS
@FAMILIES
def test_delete_leaves_nothing(
    pod: Pod, backend: str, redirection: Redirection, families: tuple[int, ...]
) -> None:
    """A rule, a policy route or an address of ours outlives the attachment, or one that was there does not."""
    before = effects.everything(pod.namespace)
    pod.add(backend, redirection, families)
    pod.clear(backend)
    assert effects.everything(pod.namespace) == before


@VARIANTS
def test_delete_twice_and_where_nothing_was(pod: Pod, backend: str, redirection: Redirection) -> None:
    """A DEL without ADD, or repeated, fails, or takes away what others made."""
    before = effects.everything(pod.namespace)
    for _ in range(2):
        pod.delete(backend, redirection)
    assert effects.everything(pod.namespace) == before


@VARIANTS
def test_add_again_changes_nothing(pod: Pod, backend: str, redirection: Redirection) -> None:
    """Each repeated ADD adds a rule, a route or an address more."""
    pod.add(backend, redirection)
    once = effects.everything(pod.namespace)
    pod.add(backend, redirection)
    pod.add(backend, redirection)
    assert effects.everything(pod.namespace) == once


def test_add_replaces_another_redirection(pod: Pod, backend: str) -> None:
    """Rules of an older version or setting stay behind a newer ADD's."""
    pod.add(backend, BASE)
    wanted = rules(effects.everything(pod.namespace))
    pod.clear(backend)
    pod.add(backend, FULL.replace(inbound="tproxy"))
    pod.add(backend, BASE)
    assert rules(effects.everything(pod.namespace)) == wanted


def test_only_the_backends_own_tool_sees_rules(pod: Pod, backend: str) -> None:
    """A backend programs through the other's tables, so that what it was chosen to avoid is needed after all."""
    pod.add(backend, FULL)
    nft, iptables = rules(effects.everything(pod.namespace))
    assert (bool(nft), bool(iptables)) == (backend == "nftables", backend == "iptables")


@FAMILIES
def test_only_the_families_asked_for_are_programmed(
    pod: Pod, backend: str, families: tuple[int, ...]
) -> None:
    """A family that was left out on purpose meets rules or routes of ours."""
    before = effects.everything(pod.namespace)
    pod.add(backend, FULL.replace(inbound="tproxy"), families)
    after = effects.everything(pod.namespace)
    new = [line for line in after["routing"] if line not in before["routing"]]
    assert {int(line[1]) for line in new} == set(families)
    if backend == "iptables":
        tools = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}
        assert {line.split()[0] for line in after["iptables"]} == {tools[family] for family in families}


def test_rules_of_others_stay(pod: Pod, backend: str) -> None:
    """An ADD or a DEL takes away the rules of portmap, of a network policy agent, or of the user."""
    pod.namespace.run(
        "nft", "add table inet theirs; add chain inet theirs c { type nat hook output priority -90; }"
    )
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("nat", "mangle", "raw", "filter"):
            pod.namespace.run(tool, "-t", table, "-N", "THEIRS")
            pod.namespace.run(tool, "-t", table, "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "THEIRS")
    before = effects.everything(pod.namespace)
    pod.add(backend, FULL.replace(inbound="tproxy"))
    during = rules(effects.everything(pod.namespace))
    for theirs, now in zip(rules(before), during, strict=True):
        assert all(line in now for line in theirs)
    pod.clear(backend)
    assert effects.everything(pod.namespace) == before


def test_captured_dns_has_a_conntrack_zone_of_its_own(pod: Pod, backend: str) -> None:
    """Without it a client's port that the proxy used a moment ago escapes (test_socket_kinds has the effect); ebpf has no conntrack."""
    pod.program(backend, BASE.replace(dns=ANYWHERE))
    assert pod.dial("10.96.0.10", 53, protocol="udp", uid=1000).port == 15053
    assert pod.dial("10.96.0.10", 53, protocol="udp", uid=1337).where == "outside"
    flows = pod.namespace.run("conntrack", "-L", "-p", "udp").splitlines()
    if backend == "ebpf":
        assert not flows
        return
    assert sorted("zone" in line for line in flows) == [False, True]
    assert all("sport=15053" in line for line in flows if "zone" in line)


def test_the_proxy_has_the_clients_connection(pod: Pod, backend: str) -> None:
    """The lab's listeners tell a story that the kernel's own table of sockets does not confirm."""
    pod.program(backend, BASE)
    held = pod.hold("10.1.2.3", 80, uid=1000)
    sockets = pod.namespace.run("ss", "-Htn", "state", "established", "sport", "=", ":15001").splitlines()
    assert len(sockets) == 1
    assert f"{held.sockname[0]}:{held.sockname[1]}" in sockets[0]
