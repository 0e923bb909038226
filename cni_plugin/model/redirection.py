"""`Redirection`: everything a backend must make true, as one frozen value of integers and prefixes.

No text from outside survives in here except interface names, which `model.parse` has checked.
Not a reader: `model.parse` makes these values, `mesh` and `config` decide which.
"""

from cni_plugin.model.value import Value

# A span is an inclusive range (low, high). Sets of ports and ids are sorted, disjoint, merged spans.
Span = tuple[int, int]
Spans = tuple[Span, ...]
# A prefix is (network bytes: 4 or 16, host bits zero; length in bits). Sets are sorted and disjoint.
Prefix = tuple[bytes, int]
Prefixes = tuple[Prefix, ...]

NONE: Spans = ()
ALL_PORTS: Spans = ((0, 0xFFFF),)
# (uid_t)-1 and (gid_t)-1 mean "unset" to the kernel, so the highest id is 2**32 - 2.
ALL_IDS: Spans = ((0, 0xFFFFFFFE),)
ANYWHERE: Prefixes = ((bytes(4), 0), (bytes(16), 0))
LOOPBACK: Prefixes = ((b"\x7f\0\0\1", 32), (bytes(15) + b"\1", 128))
# 127.0.0.6 and ::6: the source a proxy binds when it passes inbound traffic on to the app.
PASSTHROUGH: Prefixes = ((b"\x7f\0\0\6", 32), (bytes(15) + b"\6", 128))


class UidExclusion(Value):
    """Row O2 for some uids: these ports of these protocols, for processes of these uids, pass."""

    uids: Spans
    ports: Spans = ALL_PORTS
    protocols: tuple[str, ...] = ("tcp", "udp")


class Redirection(Value):
    """The contract's parameters (docs/ARCHITECTURE.md, "The contract"). Ids are the sandbox's own."""

    proxy_uids: Spans = NONE
    proxy_gids: Spans = NONE
    inbound: str = "redirect"  # redirect | tproxy | off
    outbound: str = "redirect"  # redirect | off
    inbound_port: int = 15006
    outbound_port: int = 15001
    dns_port: int = 15053
    tunnel_port: int = 0  # 0: the mesh has none
    include_inbound_ports: Spans = ALL_PORTS
    exclude_inbound_ports: Spans = NONE
    exclude_inbound_cidrs: Prefixes = ()
    include_outbound_ports: Spans = NONE
    exclude_outbound_ports: Spans = NONE
    exclude_outbound_ports_for_uids: tuple[UidExclusion, ...] = ()
    include_outbound_cidrs: Prefixes = ANYWHERE
    exclude_outbound_cidrs: Prefixes = ()
    exclude_interfaces: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()
    dns: Prefixes = ()  # (): off; ANYWHERE: all; else the captured servers
    dns_protocols: tuple[str, ...] = ("udp", "tcp")
    dns_address: tuple[bytes, ...] = ()  # (): the proxy on loopback; else at most one per family
    drop_invalid: bool = False
    udp443: str = "pass"  # pass | reject
    families: str = "auto"  # auto | ipv4 | dual
    self_calls_to_inbound: bool = True
    include_loopback: bool = False
    loopback_cidrs: Prefixes = LOOPBACK
    include_outbound_gids: Spans = ALL_IDS
    exclude_outbound_gids: Spans = NONE
    passthrough_sources: Prefixes = PASSTHROUGH
    tproxy_mark: int = 1337
    tproxy_table: int = 133


def effective_families(redirection: Redirection, addresses: "list[bytes]") -> tuple[int, ...]:
    """Return the IP versions to program, (4,), (6,) or (4, 6), from the setting and the pod's addresses.

    `auto` follows prevResult's addresses; without any (no prevResult) both families are programmed,
    because a family that is not programmed bypasses the mesh.
    """
    if redirection.families == "ipv4":
        return (4,)
    if redirection.families == "dual":
        return (4, 6)
    found = tuple(sorted({4 if len(address) == 4 else 6 for address in addresses}))
    return found or (4, 6)
