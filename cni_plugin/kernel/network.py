"""What a network namespace has: interfaces, addresses, routes, listeners, over netlink. Nothing is changed.

Structures and constants: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/inet_diag.h.
"""

from _struct import pack, unpack, unpack_from

from cni_plugin.kernel.netlink import NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST, Netlink, attrs, message
from cni_plugin.model.value import Value

_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL = 3, 1, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 7, 9, 15
_RTN_UNICAST, _RTN_LOCAL = 1, 2
# NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY (linux/sock_diag.h); IPPROTO_TCP, TCP_LISTEN.
_SOCK_DIAG, _BY_FAMILY, _TCP, _TCP_LISTEN = 4, 20, 6, 10
_LOCAL, _MAIN, _DEFAULT = 255, 254, 253
_FAMILIES = ((2, 4), (10, 16))  # AF_INET, AF_INET6, with an address's length


class Route(Value):
    """One route: what it reaches, by which interface, with which of our addresses ("": ours to choose)."""

    network: bytes
    length: int
    local: bool  # to an address of the namespace's own
    interface: int
    source: bytes = b""


class Network(Value):
    """Interfaces by index, and the routes a packet without a mark takes; `plain` if no other rules choose."""

    interfaces: "dict[int, str]"
    routes: "tuple[Route, ...]"
    plain: bool = True


def read() -> Network:
    """Return what the namespace we are in has now. Raises `OSError`."""
    link = Netlink(NETLINK_ROUTE)
    try:
        addresses = _addresses(link)
        sources: dict[tuple[int, int], bytes] = {}
        for interface, address in addresses:
            sources.setdefault((interface, len(address)), address)
        # The kernel makes an IPv6 address's local route some time after the address.
        routes = [_to_itself(index, address) for index, address in addresses if len(address) == 16]
        for family, size in _FAMILIES:
            routes += _routes(link, family, size, sources)
        return Network(interfaces=_interfaces(link), routes=tuple(routes), plain=_plain(link))
    finally:
        link.close()


def listens(port: int) -> bool:
    """Tell whether anybody in our namespace listens on TCP `port` (sock_diag(7)). Raises `OSError`."""
    link = Netlink(_SOCK_DIAG)
    try:
        for family, _ in _FAMILIES:
            request = pack("=BBBBI48x", family, _TCP, 0, 0, 1 << _TCP_LISTEN)
            for body in link.ask(message(_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, request)):
                if int.from_bytes(body[4:6]) == port:
                    return True
        return False
    finally:
        link.close()


def _ask(link: Netlink, kind: int, body: bytes) -> "list[bytes]":
    return link.ask(message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, body))


def _interfaces(link: Netlink) -> "dict[int, str]":
    found = {}
    for body in _ask(link, _GETLINK, pack("=BxHiII", 0, 0, 0, 0, 0)):
        name = dict(attrs(body[16:])).get(_IFLA_IFNAME, b"").rstrip(b"\0")
        found[unpack_from("=i", body, 4)[0]] = name.decode("utf-8", "replace")
    return found


def _addresses(link: Netlink) -> "list[tuple[int, bytes]]":
    """Return (interface, address) for every address but IPv6's link-local ones, in the kernel's order."""
    found = []
    for body in _ask(link, _GETADDR, pack("=BBBBi", 0, 0, 0, 0, 0)):
        values = dict(attrs(body[8:]))
        address = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
        if not _is_link_local(address):
            found.append((unpack_from("=i", body, 4)[0], address))
    return found


def _is_link_local(network: bytes) -> bool:
    # They come and go by themselves, and mean another host on each interface.
    return len(network) == 16 and network[0] == 0xFE and network[1] & 0xC0 == 0x80


def _to_itself(interface: int, address: bytes) -> Route:
    return Route(network=address, length=128, local=True, interface=interface, source=address)


def _routes(link: Netlink, family: int, size: int, sources: "dict[tuple[int, int], bytes]") -> "list[Route]":
    found = []
    for body in _ask(link, _GETROUTE, pack("=BBBBBBBBI", family, *[0] * 8)):
        values = dict(attrs(body[12:]))
        table = unpack("=I", values[_RTA_TABLE])[0] if _RTA_TABLE in values else body[4]
        kind, length = body[7], body[1]
        if kind not in (_RTN_UNICAST, _RTN_LOCAL) or table not in (_LOCAL, _MAIN):
            continue
        # Of several next hops the first stands for all (struct rtnexthop: the index after four bytes).
        index = values.get(_RTA_OIF) or values.get(_RTA_MULTIPATH, bytes(8))[4:8]
        interface = unpack("=i", index)[0]
        local = kind == _RTN_LOCAL
        network = values.get(_RTA_DST, b"").ljust(size, b"\0")
        if _is_link_local(network):
            continue
        source = values.get(_RTA_PREFSRC, b"")
        if not source:
            source = network if local else sources.get((interface, size), b"")
        found.append(Route(network=network, length=length, local=local, interface=interface, source=source))
    return found


def _plain(link: Netlink) -> bool:
    """Tell whether every packet without a mark is routed by the tables local, main and default alone."""
    for family, _ in _FAMILIES:
        for body in _ask(link, _GETRULE, pack("=BBBBBBBBI", family, *[0] * 8)):
            values = dict(attrs(body[12:]))
            table = unpack("=I", values[_RTA_TABLE])[0] if _RTA_TABLE in values else body[4]
            marked = 10 in values  # FRA_FWMARK (linux/fib_rules.h)
            if table not in (_LOCAL, _MAIN, _DEFAULT) and not marked:
                return False
    return True
