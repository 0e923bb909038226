"""nf_tables over netlink: expressions and objects as bytes, one transaction per batch, and dumps to compare.

Encodings are those nft(8) produces for the same rule (tests/kernel compares them). Constants are from
linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h. Not a rule language: `backends.nftables` is.
Long because it is a table of encodings, and what is sent is read back by the same attribute numbers.
"""

import errno
import os
from _struct import pack

from cni_plugin.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    be32,
    message,
    nest,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# An object as it compares: ("table" | "chain" | "set" | "element" | "rule", its name or its chain's, ...).
Form = tuple[object, ...]

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYS = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN = 0, 1, 2, 3, 4
_NEWRULE, _GETRULE, _NEWSET, _GETSET, _NEWSETELEM, _GETSETELEM, _GETGEN = 6, 7, 9, 10, 12, 13, 16
INET = 1  # NFPROTO_INET
_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2
_CMP_EQ, _CMP_NEQ, _CMP_LTE, _CMP_GTE = 0, 1, 3, 5
_META_MARK, META_IIFNAME, META_OIFNAME, META_SKUID, META_SKGID = 3, 6, 7, 10, 11
_META_NFPROTO, _META_L4PROTO = 15, 16
_CT_STATE, _CT_MARK, _CT_ZONE = 0, 3, 17
_NF_CT_STATE_INVALID = 1
_SOCKET_TRANSPARENT, _SOCKET_WILDCARD = 0, 2
_COUNTER_PACKETS = 2
_RTN_LOCAL = 2  # linux/rtnetlink.h
_RANGE_MAP_IPS, _RANGE_PROTO_SPECIFIED = 1, 2  # linux/netfilter/nf_nat.h
_SET_INTERVAL, _ELEM_INTERVAL_END = 4, 1
# Set key types are nft's own numbering (nftables, include/datatype.h), then key length in bytes and
# nft's note of the byte order (1 host, 2 network), which it keeps in the set's userdata.
SET_TYPES = {"ipv4": (7, 4, 2), "ipv6": (8, 16, 2), "port": (13, 2, 2), "uid": (24, 4, 1), "gid": (25, 4, 1)}
HOOKS = {"prerouting": 0, "forward": 2, "output": 3}  # linux/netfilter.h, enum nf_inet_hooks
VERDICTS = {"accept": 1, "drop": 0, "return": -5, "goto": -4}
# Elements a NEWSETELEM message may carry: its list is one attribute, whose length is 16 bits.
_ELEMENTS = 600


def _expr(name: str, data: bytes) -> bytes:
    return nest(1, text(1, name) + nest(2, data))


def _cmp(value: bytes, op: int = _CMP_EQ) -> bytes:
    return _expr("cmp", be32(1, _REG_1) + be32(2, op) + nest(3, attr(1, value)))


def _immediate(value: bytes, register: int = _REG_1) -> bytes:
    return _expr("immediate", be32(1, register) + nest(2, attr(1, value)))


def _masked(mask: bytes) -> bytes:
    length = len(mask)
    fields = be32(1, _REG_1) + be32(2, _REG_1) + be32(3, length)
    return _expr("bitwise", fields + nest(4, attr(1, mask)) + nest(5, attr(1, bytes(length))))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expr("payload", be32(1, _REG_1) + be32(2, base) + be32(3, offset) + be32(4, length))


def _meta(key: int) -> bytes:
    return _expr("meta", be32(2, key) + be32(1, _REG_1))


def _ct(key: int) -> bytes:
    return _expr("ct", be32(2, key) + be32(1, _REG_1))


def _lookup(name: str) -> bytes:
    return _expr("lookup", be32(2, _REG_1) + text(1, name))


COUNTER = _expr("counter", attr(1, bytes(8)) + attr(2, bytes(8)))


def family(version: int) -> bytes:
    """Match IPv4 or IPv6 (`meta nfproto`)."""
    return _meta(_META_NFPROTO) + _cmp(b"\2" if version == 4 else b"\x0a")


def protocol(number: int) -> bytes:
    """Match a transport protocol (`meta l4proto`)."""
    return _meta(_META_L4PROTO) + _cmp(bytes((number,)))


def interface(key: int, name: str) -> bytes:
    """Match an interface's name, or its beginning when `name` ends in "+"."""
    value = name[:-1].encode() if name.endswith("+") else name.encode().ljust(16, b"\0")
    return _meta(key) + (_cmp(value) if value else b"")


def opens_connection() -> bytes:
    """Match SYN without ACK: `tcp flags & (fin | syn | rst | ack) == syn`."""
    return _payload(2, 13, 1) + _masked(b"\x17") + _cmp(b"\x02")


def port_in(spans: "tuple[tuple[int, int], ...]", name: str) -> bytes:
    """Match the destination port: one value, one range, or the set `name`."""
    load = _payload(2, 2, 2)
    if len(spans) > 1:
        return load + _lookup(name)
    return load + _between(pack(">H", spans[0][0]), pack(">H", spans[0][1]))


def _between(low: bytes, high: bytes) -> bytes:
    return _cmp(low) if low == high else _cmp(low, _CMP_GTE) + _cmp(high, _CMP_LTE)


def address_in(prefixes: "tuple[tuple[bytes, int], ...]", name: str, source: bool) -> bytes:
    """Match an address of the family of `prefixes`: one prefix, or the set `name`."""
    network, length = prefixes[0]
    size = len(network)
    offset = (12 if source else 16) if size == 4 else (8 if source else 24)
    if len(prefixes) > 1:
        return _payload(1, offset, size) + _lookup(name)
    if length % 8 == 0:
        return _payload(1, offset, length // 8) + _cmp(network[: length // 8])
    mask = (((1 << length) - 1) << (size * 8 - length)).to_bytes(size, "big")
    return _payload(1, offset, size) + _masked(mask) + _cmp(network)


def owner_in(key: int, low: int, high: int) -> bytes:
    """Match the owner's id against a range, or one id."""
    if low == high:
        return _meta(key) + _cmp(pack("=I", low))
    # Ids are loaded in host order; a range is compared byte by byte, so it needs network order.
    to_network = be32(1, _REG_1) + be32(2, _REG_1) + be32(3, 1) + be32(4, 4) + be32(5, 4)
    return _meta(key) + _expr("byteorder", to_network) + _between(pack(">I", low), pack(">I", high))


def owner_in_set(key: int, name: str) -> bytes:
    """Match the owner's id against the set `name`."""
    return _meta(key) + _lookup(name)


def marked(value: int) -> bytes:
    """Match the packet's mark."""
    return _meta(_META_MARK) + _cmp(pack("=I", value))


def connection_marked(value: int) -> bytes:
    """Match the connection's mark."""
    return _ct(_CT_MARK) + _cmp(pack("=I", value))


def invalid() -> bytes:
    """Match `ct state invalid`."""
    return _ct(_CT_STATE) + _masked(pack("=I", _NF_CT_STATE_INVALID)) + _cmp(bytes(4), _CMP_NEQ)


def local_address(source: bool) -> bytes:
    """Match `fib saddr type local`: the address is one of the namespace's own."""
    return _expr("fib", be32(1, _REG_1) + be32(2, 3) + be32(3, 1 if source else 2)) + _cmp(
        pack("=I", _RTN_LOCAL)
    )


def transparent() -> bytes:
    """Match `socket transparent 1`."""
    return _expr("socket", be32(1, _SOCKET_TRANSPARENT) + be32(2, _REG_1)) + _cmp(b"\1")


def wildcard() -> bytes:
    """Match `socket wildcard 1`; never a connection that is being set up (nft_socket.c)."""
    return _expr("socket", be32(1, _SOCKET_WILDCARD) + be32(2, _REG_1)) + _cmp(b"\1")


def verdict(name: str, chain: str = "") -> bytes:
    """End the rule: accept, drop, return, or goto `chain`."""
    code = be32(1, VERDICTS[name]) + (text(2, chain) if chain else b"")
    return _expr("immediate", be32(1, _REG_VERDICT) + nest(2, nest(2, code)))


def redirect(port: int) -> bytes:
    """`redirect to :port`."""
    return _immediate(pack(">H", port)) + _expr(
        "redir", be32(1, _REG_1) + be32(2, _REG_1) + be32(3, _RANGE_PROTO_SPECIFIED)
    )


def dnat(address: bytes, port: int) -> bytes:
    """`dnat ip to address:port`, or ip6."""
    nat = be32(1, 1) + be32(2, 2 if len(address) == 4 else 10) + be32(3, _REG_1) + be32(4, _REG_1)
    nat += be32(5, _REG_2) + be32(6, _REG_2)
    target = _immediate(address) + _immediate(pack(">H", port), _REG_2)
    return target + _expr("nat", nat + be32(7, _RANGE_MAP_IPS | _RANGE_PROTO_SPECIFIED))


def tproxy(port: int) -> bytes:
    """`tproxy to :port`; the rule ends here unmatched when no transparent socket listens."""
    return _immediate(pack(">H", port)) + _expr("tproxy", be32(1, 0) + be32(3, _REG_1))


def set_mark(value: int) -> bytes:
    """`meta mark set value`."""
    return _immediate(pack("=I", value)) + _expr("meta", be32(2, _META_MARK) + be32(3, _REG_1))


def save_mark() -> bytes:
    """`ct mark set meta mark`."""
    return _meta(_META_MARK) + _expr("ct", be32(2, _CT_MARK) + be32(4, _REG_1))


def restore_mark() -> bytes:
    """`meta mark set ct mark`."""
    return _ct(_CT_MARK) + _expr("meta", be32(2, _META_MARK) + be32(3, _REG_1))


def original_zone(number: int) -> bytes:
    """`ct original zone set number`."""
    return _immediate(pack("=H", number)) + _expr("ct", be32(2, _CT_ZONE) + be32(4, _REG_1) + attr(3, b"\0"))


def reject(reset: bool) -> bytes:
    """`reject with tcp reset`, or with ICMP port unreachable of the packet's family."""
    return _expr("reject", be32(1, 1) + attr(2, b"\0") if reset else be32(1, 2) + attr(2, b"\1"))


class Batch:
    """One transaction: objects are added in order, `commit` sends all of it, and all or nothing happens."""

    def __init__(self, table: str) -> None:
        self._table = text(1, table)
        self._messages: list[bytes] = []
        self._labels: list[str] = []

    def _add(self, kind: int, flags: int, body: bytes, label: str) -> None:
        # Sequence 0 is the batch's begin, so a message's number is its place, and errors name it.
        seq = len(self._messages) + 1
        header = pack(">BBH", INET, 0, 0)
        self._messages.append(message(_SUBSYS << 8 | kind, NLM_F_REQUEST | flags, seq, header + body))
        self._labels.append(label)

    def add_table(self, exclusive: bool = False) -> None:
        """Make the table, or leave it as it is; `exclusive`: EEXIST if it is there."""
        flags = NLM_F_CREATE | NLM_F_EXCL if exclusive else NLM_F_CREATE
        self._add(_NEWTABLE, flags, self._table + be32(2, 0), "table")

    def delete_table(self) -> None:
        """Delete the table and all in it; ENOENT if there is none."""
        self._add(_DELTABLE, 0, self._table, "table")

    def add_chain(self, name: str, kind: str = "", hook: str = "", priority: int = 0) -> None:
        """Make a chain; with `hook` a base chain of `kind` filter, nat or route, policy accept."""
        body = self._table + text(3, name)
        if hook:
            body += nest(4, be32(1, HOOKS[hook]) + be32(2, priority)) + be32(5, 1) + text(7, kind)
        self._add(_NEWCHAIN, NLM_F_CREATE, body, f"chain {name}")

    def add_rule(self, chain: str, expressions: bytes, comment: str) -> None:
        """Append a rule; `comment` is kept as nft(8) keeps it (libnftnl, udata.h: type 0, length, text)."""
        note = comment.encode() + b"\0"
        body = self._table + text(2, chain) + nest(4, expressions) + attr(7, pack("=BB", 0, len(note)) + note)
        self._add(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, f"rule {comment!r} in chain {chain}")

    def add_set(self, name: str, kind: str, intervals: bool, keys: "list[tuple[bytes, bool]]") -> None:
        """Make a set and fill it with (key, whether it ends an interval)."""
        datatype, length, order = SET_TYPES[kind]
        number = len(self._messages) + 1
        body = self._table + text(2, name) + be32(3, _SET_INTERVAL if intervals else 0) + be32(4, datatype)
        body += be32(5, length) + be32(10, number) + attr(13, pack("=BBI", 0, 4, order))
        self._add(_NEWSET, NLM_F_CREATE, body, f"set {name}")
        for start in range(0, len(keys), _ELEMENTS):
            listed = b"".join(_element(key, end) for key, end in keys[start : start + _ELEMENTS])
            self._add(_NEWSETELEM, NLM_F_CREATE, self._table + text(2, name) + nest(3, listed), f"set {name}")

    def commit(self) -> None:
        """Apply everything in one transaction; raises `NetlinkError` naming the object, nothing changed."""
        last = len(self._messages)
        flagged = bytearray(self._messages[-1])
        flagged[6] |= NLM_F_ACK
        around = pack(">BBH", 0, 0, _SUBSYS)
        data = b"".join(
            (
                message(_BATCH_BEGIN, NLM_F_REQUEST, 0, around),
                *self._messages[:-1],
                flagged,
                message(_BATCH_END, NLM_F_REQUEST, 0, around),
            )
        )
        link = Netlink(NETLINK_NETFILTER)
        try:
            link.send(data, last)
        except NetlinkError as error:
            label = self._labels[error.seq - 1] if 0 < error.seq <= last else "the transaction"
            raise NetlinkError(
                error.errno or 0, f"{label}: {os.strerror(error.errno or 0)}", error.seq
            ) from None
        finally:
            link.close()

    def objects(self) -> "list[Form]":
        """Return the canonical form of everything in the batch, to compare with `dump`."""
        found: list[Form] = []
        for raw in self._messages:
            if raw[4] in _FORMS:
                found += _FORMS[raw[4]](dict(attrs(raw[20:])))
        return found


def _element(key: bytes, end: bool) -> bytes:
    return nest(1, nest(1, attr(1, key)) + (be32(3, _ELEM_INTERVAL_END) if end else b""))


def available() -> None:
    """Ask nf_tables for its generation; raises `NetlinkError` where the kernel has no nf_tables."""
    link = Netlink(NETLINK_NETFILTER)
    try:
        header = pack(">BBH", 0, 0, 0)
        link.ask(message(_SUBSYS << 8 | _GETGEN, NLM_F_REQUEST, 1, header))
    finally:
        link.close()


def exists(table: str, nfproto: int = INET) -> bool:
    """Tell whether there is a `table` of family `nfproto` (linux/netfilter.h).

    False also where the kernel has no nf_tables.
    """
    link = Netlink(NETLINK_NETFILTER)
    try:
        link.ask(
            message(_SUBSYS << 8 | _GETTABLE, NLM_F_REQUEST, 1, pack(">BBH", nfproto, 0, 0) + text(1, table))
        )
    except NetlinkError:
        return False
    finally:
        link.close()
    return True


def dump(table: str) -> "list[Form]":
    """Read `table`, its chains, sets, elements and rules in canonical form, in the kernel's order."""
    link = Netlink(NETLINK_NETFILTER)
    try:
        found: list[Form] = []
        kinds = ((_GETTABLE, _NEWTABLE), (_GETCHAIN, _NEWCHAIN), (_GETSET, _NEWSET), (_GETRULE, _NEWRULE))
        for get, new in kinds:
            for fields in _dump(link, get, text(1, table), table):
                found += _FORMS[new](fields)
        for name in [form[1] for form in found if form[0] == "set"]:
            for fields in _dump(link, _GETSETELEM, text(1, table) + text(2, str(name)), table):
                found += _FORMS[_NEWSETELEM](fields)
        return found
    finally:
        link.close()


def counters(table: str) -> "list[tuple[str, str, int]]":
    """Return (chain, comment, packets) of every rule of `table` that counts; [] where there is none."""
    link = Netlink(NETLINK_NETFILTER)
    try:
        rules = list(_dump(link, _GETRULE, text(1, table), table))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return []
    finally:
        link.close()
    found = []
    for fields in rules:
        for _, data in attrs(fields.get(4, b"")):
            parts = dict(attrs(data))
            if _string(parts[1]) == "counter":
                packets = int.from_bytes(dict(attrs(parts[2]))[_COUNTER_PACKETS], "big")
                found.append((_string(fields[2]), _comment(fields), packets))
    return found


def _dump(link: Netlink, kind: int, body: bytes, table: str) -> "Iterable[dict[int, bytes]]":
    request = message(_SUBSYS << 8 | kind, NLM_F_REQUEST | NLM_F_DUMP, 1, pack(">BBH", INET, 0, 0) + body)
    wanted = table.encode() + b"\0"
    for answer in link.ask(request):
        fields = dict(attrs(answer[4:]))
        if fields.get(1) == wanted:  # dumps of chains are not filtered by table
            yield fields


def label(form: "Form") -> str:
    """Name the object of a canonical form for people."""
    if form[0] == "rule":
        return f"rule {form[2]!r} in chain {form[1]}"
    return f"element of set {form[1]}" if form[0] == "element" else f"{form[0]} {form[1]}"


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _table_form(fields: "dict[int, bytes]") -> "list[Form]":
    # Its flags: a dormant table is there, whole, and does nothing.
    return [("table", _string(fields[1]), fields[2])]


def _chain_form(fields: "dict[int, bytes]") -> "list[Form]":
    hook = {kind: data for kind, data in attrs(fields.get(4, b"")) if kind in (1, 2)}
    policy = fields.get(5, b"")
    return [("chain", _string(fields[3]), tuple(sorted(hook.items())), policy, _string(fields.get(7, b"")))]


def _set_form(fields: "dict[int, bytes]") -> "list[Form]":
    return [("set", _string(fields[2]), fields.get(3, bytes(4)), fields[4], fields[5])]


def _element_forms(fields: "dict[int, bytes]") -> "list[Form]":
    name = _string(fields[2])
    return [("element", name, _tree(data)) for _, data in attrs(fields.get(3, b""))]


def _rule_form(fields: "dict[int, bytes]") -> "list[Form]":
    expressions = []
    for _, data in attrs(fields.get(4, b"")):
        parts = dict(attrs(data))
        name = _string(parts[1])
        # A counter's value is not a difference.
        expressions.append((name, () if name == "counter" else _tree(parts.get(2, b""))))
    return [("rule", _string(fields[2]), _comment(fields), tuple(expressions))]


def _comment(fields: "dict[int, bytes]") -> str:
    note = fields.get(7, b"")
    return _string(note[2:]) if note[:1] == b"\0" else ""


def _tree(data: bytes) -> "tuple[object, ...]":
    """Read nested attributes as sorted (type, value), without those that are zero: the kernel's defaults.

    The kernel does not mark all its nests, so a value that parses as one whole is taken for one; what was
    sent and what is read back go through the same rule, so they compare.
    """
    found: list[tuple[int, object]] = []
    for kind, value in attrs(data):
        inner: object = _tree(value) if _nested(value) else value
        if inner and inner != bytes(len(value)):
            found.append((kind, inner))
    return tuple(sorted(found, key=lambda pair: pair[0]))


def _nested(data: bytes) -> bool:
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        if length < 4 or at + length > len(data):
            return False
        at += (length + 3) & ~3
    return at == len(data) and at > 0


_FORMS: "dict[int, Callable[[dict[int, bytes]], list[Form]]]" = {
    _NEWTABLE: _table_form,
    _NEWCHAIN: _chain_form,
    _NEWSET: _set_form,
    _NEWSETELEM: _element_forms,
    _NEWRULE: _rule_form,
}
