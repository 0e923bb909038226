"""Netlink sockets and attributes: bytes out, messages in, errno raised with the kernel's own words.

Not a netlink library: no families, no names; `nft` and `rtnl` know what the bytes mean.
"""

import _socket
import errno
import os
from _struct import pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLM_F_MULTI = 0x2
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSGERR_ATTR_MSG = 1
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF


def attr(kind: int, data: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes (linux/netlink.h, struct nlattr)."""
    return pack("=HH", len(data) + 4, kind) + data + b"\0" * (-len(data) & 3)


def nest(kind: int, data: bytes) -> bytes:
    """Encode an attribute that holds attributes."""
    return attr(kind | _NESTED, data)


def be32(kind: int, value: int) -> bytes:
    """Encode a 32-bit big-endian attribute, as nf_tables has them."""
    return pack("=HH", 8, kind) + pack(">I", value & 0xFFFFFFFF)


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit host-endian attribute, as rtnetlink has them."""
    return pack("=HHI", 8, kind, value)


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def attrs(data: bytes) -> "Iterator[tuple[int, bytes]]":
    """Walk the attributes of `data` as (type without flags, payload)."""
    at = 0
    while at + 4 <= len(data):
        length, kind = unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """Frame one message (linux/netlink.h, struct nlmsghdr)."""
    return pack("=IHHII", len(body) + 16, kind, flags, seq, 0) + body


class NetlinkError(OSError):
    """The kernel refused a message: `errno`, its own words if it has any, and the message's `seq`."""

    def __init__(self, number: int, words: str, seq: int) -> None:
        super().__init__(number, words or os.strerror(number))
        self.seq = seq


def _failure(body: bytes, flags: int) -> "NetlinkError | None":
    code, _, _, _, seq = unpack_from("=iIHHI", body, 0)
    if code == 0:
        return None
    words = ""
    if flags & _NLM_F_ACK_TLVS:
        # With CAP_ACK the offending message is cut to its header, so the attributes follow it.
        skip = 20 if flags & _NLM_F_CAPPED else 4 + unpack_from("=I", body, 4)[0]
        found = dict(attrs(body[skip:]))
        words = found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")
    return NetlinkError(-code, words, seq)


class Netlink:
    """One socket in the network namespace the process is in when it is made; it stays there."""

    def __init__(self, protocol: int) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        if protocol == NETLINK_ROUTE:
            # Without it the kernel ignores a dump's filter and answers with every table's routes.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket; twice is harmless."""
        self._socket.close()

    def send(self, data: bytes, last: int) -> None:
        """Send `data`, whose message `last` asks for an ACK; raise the first refusal.

        The kernel works on netlink requests inside send(2), so every answer is there when it returns.
        """
        self._room(len(data))
        self._socket.send(data)
        refused: NetlinkError | None = None
        while True:
            try:
                answer = self._socket.recv(1 << 16, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                if refused:
                    raise refused from None
                raise NetlinkError(errno.EPROTO, "the kernel did not answer", last) from None
            for kind, flags, seq, body in _messages(answer):
                if kind == _NLMSG_ERROR:
                    refused = refused or _failure(body, flags)
                    if seq == last:
                        if refused:
                            raise refused
                        return

    def ask(self, data: bytes) -> "list[bytes]":
        """Send one request; return the body of each message of the answer, a dump or a single one."""
        self._socket.send(data)
        found: list[bytes] = []
        while True:
            for kind, flags, _, body in _messages(self._socket.recv(1 << 18)):
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    refused = _failure(body, flags)
                    if refused:
                        raise refused
                    return found
                found.append(body)
                if not flags & _NLM_F_MULTI:
                    return found

    def _room(self, size: int) -> None:
        # The whole batch is one skb, and its ACKs one each: thousands of prefixes outgrow the defaults.
        if size > 1 << 16:
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * size)
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, 2 * size)


def _messages(data: bytes) -> "Iterator[tuple[int, int, int, bytes]]":
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, seq, _ = unpack_from("=IHHII", data, at)
        yield kind, flags, seq, data[at + 16 : at + length]
        at += (length + 3) & ~3
