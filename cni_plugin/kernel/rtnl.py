"""rtnetlink: loopback up, an address on it, a policy rule by mark and a local route. Nothing else.

Not a route manager: tests and the CLI use pyroute2; the plugin's path cannot afford its import (152 ms).
Structures and constants: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/fib_rules.h.
"""

import errno
from _struct import pack, unpack_from

from cni_plugin.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Netlink,
    attr,
    attrs,
    message,
    u32,
)

_NEWLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 18, 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWRULE, _DELRULE, _GETRULE = 24, 25, 26, 32, 33, 34
_AF = {4: 2, 6: 10}
_IFF_UP = 1
LOOPBACK_INDEX = 1  # lo is the first device of every network namespace (include/net/net_namespace.h)
_RTN_LOCAL, _RT_SCOPE_HOST, _RTPROT_STATIC, _FR_ACT_TO_TBL = 2, 254, 4, 1
_RTA_OIF, _RTA_TABLE, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 4, 15, 6, 10, 15
_FRA_FWMASK, _FRA_INTERFACES, _INVERT = 16, {3, 17}, 2  # linux/fib_rules.h; FRA_IIFNAME, FRA_OIFNAME
# Just before the main table (32766). Without a priority the kernel takes equal rules for different ones.
_PRIORITY = 32765
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_GONE = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


class Routes:
    """A socket in the namespace it was made in. Makers return whether something was made."""

    def __init__(self) -> None:
        self._link = Netlink(NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._link.close()

    def _change(self, kind: int, flags: int, body: bytes) -> None:
        self._link.send(message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, body), 1)

    def _make(self, kind: int, body: bytes) -> bool:
        try:
            self._change(kind, NLM_F_CREATE | NLM_F_EXCL, body)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def _remove(self, kind: int, body: bytes) -> bool:
        try:
            self._change(kind, 0, body)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        return True

    def loopback_is_up(self) -> bool:
        """Tell whether lo is up; it is not in a namespace that no loopback plugin has seen."""
        request = pack("=BxHiII", 0, 0, LOOPBACK_INDEX, 0, 0)
        for body in self._link.ask(message(_GETLINK, NLM_F_REQUEST, 1, request)):
            return bool(unpack_from("=I", body, 8)[0] & _IFF_UP)
        return False

    def set_loopback(self, up: bool) -> None:
        """Bring lo up or down."""
        self._change(_NEWLINK, 0, pack("=BxHiII", 0, 0, LOOPBACK_INDEX, _IFF_UP if up else 0, _IFF_UP))

    def add_address(self, address: bytes) -> bool:
        """Add `address` (4 or 16 bytes) to lo, as a host address."""
        return self._make(_NEWADDR, _address(address))

    def remove_address(self, address: bytes) -> bool:
        """Remove `address` from lo."""
        return self._remove(_DELADDR, _address(address))

    def has_address(self, address: bytes) -> bool:
        """Tell whether lo has `address`."""
        request = pack("=BBBBi", _AF[4 if len(address) == 4 else 6], 0, 0, 0, LOOPBACK_INDEX)
        for body in self._link.ask(message(_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, request)):
            if dict(attrs(body[8:])).get(_IFA_ADDRESS) == address:
                return True
        return False

    def add_rule(self, family: int, mark: int, table: int) -> bool:
        """Add `ip rule fwmark mark lookup table`, once."""
        return self._make(_NEWRULE, _rule(family, mark, table))

    def remove_rule(self, family: int, mark: int, table: int) -> bool:
        """Remove that rule."""
        return self._remove(_DELRULE, _rule(family, mark, table))

    def has_rule(self, family: int, mark: int, table: int) -> bool:
        """Tell whether that rule is there."""
        for body in self._link.ask(
            message(_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, 1, pack("=BBBBBBBBI", _AF[family], *[0] * 8))
        ):
            found = dict(attrs(body[12:]))
            wanted = dict(attrs(_rule(family, mark, table)[12:])) | {_FRA_FWMASK: b"\xff" * 4}
            # Whole: with one more selector, inverted, or after the main table it is another rule.
            plain = body[1:3] == b"\0\0" and body[7] == _FR_ACT_TO_TBL and not body[8] & _INVERT
            if plain and wanted.items() <= found.items() and not found.keys() & _FRA_INTERFACES:
                return True
        return False

    def add_local_route(self, family: int, table: int) -> bool:
        """Add `ip route local default dev lo table`: packets sent there are taken as our own."""
        return self._make(_NEWROUTE, _route(family, table))

    def remove_local_route(self, family: int, table: int) -> bool:
        """Remove that route."""
        return self._remove(_DELROUTE, _route(family, table))

    def has_local_route(self, family: int, table: int) -> bool:
        """Tell whether that route is there."""
        request = pack("=BBBBBBBBI", _AF[family], 0, 0, 0, 0, 0, 0, _RTN_LOCAL, 0) + u32(_RTA_TABLE, table)
        try:
            found = self._link.ask(message(_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 1, request))
        except OSError as error:
            if error.errno not in _GONE:  # a table nobody ever used is ENOENT
                raise
            return False
        lo = pack("=I", LOOPBACK_INDEX)
        return any(body[1] == 0 and dict(attrs(body[12:])).get(_RTA_OIF) == lo for body in found)


def _address(address: bytes) -> bytes:
    version = 4 if len(address) == 4 else 6
    header = pack("=BBBBi", _AF[version], len(address) * 8, _IFA_F_NODAD, _RT_SCOPE_HOST, LOOPBACK_INDEX)
    return header + attr(_IFA_LOCAL, address) + attr(_IFA_ADDRESS, address)


def _rule(family: int, mark: int, table: int) -> bytes:
    header = pack("=BBBBBBBBI", _AF[family], 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
    return header + u32(_FRA_PRIORITY, _PRIORITY) + u32(_FRA_FWMARK, mark) + u32(_FRA_TABLE, table)


def _route(family: int, table: int) -> bytes:
    header = pack("=BBBBBBBBI", _AF[family], 0, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    return header + u32(_RTA_OIF, LOOPBACK_INDEX) + u32(_RTA_TABLE, table)
