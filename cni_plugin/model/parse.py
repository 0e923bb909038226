"""Hostile text and JSON to integers, prefixes and names; nothing but those ever reaches a rule.

Not a chooser of defaults: it only says what a value means, or raises `CniError` 7 that names the
field, the value and what was expected. Over 300 lines because every reader of outside text is here,
so that "what may a value look like?" has one place to look.
"""

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from cni_plugin.model.errors import INVALID_NETCONF, CniError, bad_field, no_field
from cni_plugin.model.redirection import (
    ALL_IDS,
    ALL_PORTS,
    ANYWHERE,
    Prefix,
    Prefixes,
    Redirection,
    Span,
    Spans,
    UidExclusion,
)

MAX_PORT = 0xFFFF
MAX_ID = ALL_IDS[0][1]
IFNAMSIZ = 16  # linux/if.h: an interface name and its closing NUL
TABLE_DEFAULT, TABLE_LOCAL = 253, 255  # linux/rtnetlink.h: RT_TABLE_DEFAULT, _MAIN, _LOCAL

_WIDE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_LENGTHS = {str(length): length for length in range(129)}

_PORT_SET = 'a list of ports 0..65535 or ranges "8000-8100", or "*"'
_ID_SET = f'a list of ids 0..{MAX_ID} or ranges "1000-2000", or "*"'
_PREFIX_SET = 'a list of prefixes such as "10.0.0.0/8" or "fd00::/8", or "*"'
_NAME = "an interface name: 1..15 of letters, digits and _ . @ -, with + at the end for a prefix"


# --- one value ---------------------------------------------------------------------------------


def boolean(field: str, value: object) -> bool:
    """Return a JSON boolean."""
    if value is True or value is False:
        return value
    raise bad_field(field, value, "true or false")


def bool_text(field: str, text: str) -> bool:
    """Return the boolean that Go's `strconv.ParseBool` reads in `text`, blanks around it trimmed."""
    word = text.strip()
    if word in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if word in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise bad_field(field, text, "true or false")


def integer(field: str, value: object, low: int, high: int) -> int:
    """Return a JSON integer of `low`..`high`; `True` and `1.0` are none."""
    if type(value) is int and low <= value <= high:
        return value
    raise bad_field(field, value, f"an integer {low}..{high}")


def integer_text(field: str, text: str, low: int, high: int) -> int:
    """Return the decimal number `low`..`high` in `text`, blanks around it trimmed."""
    number = _decimal(text.strip())
    if low <= number <= high:
        return number
    raise bad_field(field, text, f"a decimal number {low}..{high}")


def port(field: str, value: object) -> int:
    """Return a port a proxy can listen on, 1..65535."""
    return integer(field, value, 1, MAX_PORT)


def tunnel_port(field: str, value: object) -> int:
    """Return the tunnel port, 0 for none."""
    return integer(field, value, 0, MAX_PORT)


def mark(field: str, value: object) -> int:
    """Return a packet mark; the mark itself and the next two are used, so the sign bit stays clear."""
    return integer(field, value, 1, 0x7FFFFFFF)


def table(field: str, value: object) -> int:
    """Return a routing table id that the kernel does not reserve (linux/rtnetlink.h)."""
    number = integer(field, value, 1, 0xFFFFFFFF)
    if TABLE_DEFAULT <= number <= TABLE_LOCAL:
        raise bad_field(field, value, "a routing table other than 253, 254 and 255")
    return number


def choice(field: str, value: object, allowed: "tuple[str, ...]") -> str:
    """Return `value` if it is one of `allowed`."""
    if isinstance(value, str) and value in allowed:
        return value
    raise bad_field(field, value, " or ".join(f'"{word}"' for word in allowed))


# --- sets of ports and ids -----------------------------------------------------------------------


def ports(field: str, value: object) -> Spans:
    """Return the ports of a JSON list of integers and ranges, or of "*"."""
    return ALL_PORTS if value == "*" else _spans(field, value, MAX_PORT, _PORT_SET)


def ids(field: str, value: object) -> Spans:
    """Return the uids or gids of a JSON list of integers and ranges, or of "*"."""
    return ALL_IDS if value == "*" else _spans(field, value, MAX_ID, _ID_SET)


def port_list(field: str, text: str) -> Spans:
    """Return the ports of an annotation's comma list; "*" is all, empty text none."""
    return ports(field, "*" if text.strip() == "*" else _pieces(text))


def _spans(field: str, value: object, high: int, expected: str) -> Spans:
    if not isinstance(value, list):
        raise bad_field(field, value, expected)
    return merged([_span(field, at, item, high) for at, item in enumerate(value)])


def _span(field: str, at: int, item: object, high: int) -> Span:
    if type(item) is int:
        first = last = item
    elif isinstance(item, str):
        low, dash, top = item.partition("-")
        first = _decimal(low)
        last = _decimal(top) if dash else first
    else:
        first = last = -1
    if 0 <= first <= last <= high:
        return first, last
    raise bad_field(f"{field}[{at}]", item, f'an integer 0..{high} or a range "low-high" within it')


def _decimal(text: str) -> int:
    """Return the number in at most ten ASCII digits, or -1: `int` alone reads "+8", "8_0" and "٣"."""
    return int(text) if 0 < len(text) <= 10 and text.isascii() and text.isdigit() else -1


def merged(spans: "list[Span]") -> Spans:
    """Return `spans` sorted, with overlapping and neighbouring ones joined."""
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def uid_exclusions(field: str, value: object) -> "tuple[UidExclusion, ...]":
    """Return row O2's exclusions from `[{"uids": [...], "ports": [...], "protocol": "tcp"}]`.

    `uids` is required; `ports` defaults to "*", `protocol` (tcp, udp or any) to any.
    """
    if not isinstance(value, list):
        raise bad_field(field, value, 'a list of {"uids": ..., "ports": ..., "protocol": ...}')
    return tuple([_uid_exclusion(f"{field}[{at}]", item) for at, item in enumerate(value)])


def _uid_exclusion(field: str, item: object) -> UidExclusion:
    expected = 'an object with "uids", and perhaps "ports" and "protocol"'
    if not isinstance(item, dict):
        raise bad_field(field, item, expected)
    for key in item:
        if key not in ("uids", "ports", "protocol"):
            raise no_field(field, key, item[key], ("uids", "ports", "protocol"))
    if "uids" not in item:
        raise bad_field(field, item, expected)
    protocol = choice(f"{field}.protocol", item.get("protocol", "any"), ("tcp", "udp", "any"))
    return UidExclusion(
        uids=ids(f"{field}.uids", item["uids"]),
        ports=ports(f"{field}.ports", item.get("ports", "*")),
        protocols=("tcp", "udp") if protocol == "any" else (protocol,),
    )


# --- addresses and prefixes ----------------------------------------------------------------------


def address(field: str, value: object) -> bytes:
    """Return an IPv4 or IPv6 address, packed; one mapped into ::ffff:0:0/96 is refused as ambiguous."""
    found = b""
    if isinstance(value, str):
        try:
            found = inet_pton(AF_INET6 if ":" in value else AF_INET, value)
        except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in it
            found = b""
    if not found or found.startswith(_MAPPED):
        raise bad_field(field, value, "an IPv4 or IPv6 address")
    return found


def interface_address(field: str, value: object) -> bytes:
    """Return the address of an interface written with its network's length, "10.1.2.3/24"."""
    if isinstance(value, str):
        text, _, length = value.partition("/")
        try:
            found = address(field, text)
        except CniError:
            found = b""
        if 0 <= _LENGTHS.get(length, -1) <= 8 * len(found) and found:
            return found
    raise bad_field(field, value, 'an address with its length, such as "10.1.2.3/24"')


def addresses(field: str, value: object) -> "tuple[bytes, ...]":
    """Return the addresses of a JSON list, in its order, each once."""
    if not isinstance(value, list):
        raise bad_field(field, value, "a list of IPv4 and IPv6 addresses")
    return tuple(dict.fromkeys([address(f"{field}[{at}]", item) for at, item in enumerate(value)]))


def one_per_family(field: str, value: object) -> "tuple[bytes, ...]":
    """Return one address, or a JSON list of at most one IPv4 and one IPv6 address, IPv4 first."""
    found = (address(field, value),) if isinstance(value, str) else addresses(field, value)
    if len({len(item) for item in found}) != len(found):
        raise bad_field(field, value, "at most one IPv4 and one IPv6 address")
    return tuple(sorted(found, key=len))


def servers(field: str, value: object) -> Prefixes:
    """Return the captured DNS servers: "off" is none, "all" is everywhere, else a list of addresses."""
    if value == "off":
        return ()
    if value == "all":
        return ANYWHERE
    if not isinstance(value, list) or not value:
        raise bad_field(field, value, '"off", "all" or a list of addresses')
    return disjoint([(item, 8 * len(item)) for item in addresses(field, value)])


def prefixes(field: str, value: object) -> Prefixes:
    """Return the prefixes of a JSON list, or of "*"; a bare address means itself alone."""
    return ANYWHERE if value == "*" else _prefixes(field, value, bare=True)


def prefix_list(field: str, text: str, bare: bool = False) -> Prefixes:
    """Return the prefixes of an annotation's comma list; "*" is everywhere, empty text nowhere.

    Without `bare` an address needs its length, as the meshes' own readers demand.
    """
    return ANYWHERE if text.strip() == "*" else _prefixes(field, _pieces(text), bare)


def _prefixes(field: str, value: object, bare: bool) -> Prefixes:
    if not isinstance(value, list):
        raise bad_field(field, value, _PREFIX_SET)
    return disjoint([_prefix(field, at, item, bare) for at, item in enumerate(value)])


def _prefix(field: str, at: int, item: object, bare: bool) -> Prefix:
    if isinstance(item, str):
        text, slash, length = item.partition("/")
        try:
            network = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
        except (OSError, ValueError):
            network = b""
        bits = 8 * len(network)
        size = _LENGTHS.get(length, -1) if slash else (bits if bare else -1)
        if network and 0 <= size <= bits and not (size >= 96 and network.startswith(_MAPPED)):
            return masked(network, size)
    expected = 'a prefix such as "10.0.0.0/8" or "fd00::/8"' + (", or an address" if bare else "")
    raise bad_field(f"{field}[{at}]", item, expected)


def masked(network: bytes, length: int) -> Prefix:
    """Return the prefix with its host bits set to zero."""
    spare = 8 * len(network) - length
    if not spare:
        return network, length
    return (int.from_bytes(network, "big") >> spare << spare).to_bytes(len(network), "big"), length


def disjoint(found: "list[Prefix]") -> Prefixes:
    """Return prefixes sorted, IPv4 first, without those that another one holds."""
    kept: list[Prefix] = []
    for size in (4, 16):
        end = b""
        # Sorted so, a prefix comes after the widest one that holds it and before that one's end.
        for network, length in sorted({prefix for prefix in found if len(prefix[0]) == size}):
            if network > end:
                kept.append((network, length))
                end = _last(network, length)
    return tuple(kept)


def _last(network: bytes, length: int) -> bytes:
    """Return the highest address of a prefix."""
    spare = 8 * len(network) - length
    if not spare:
        return network
    return (int.from_bytes(network, "big") | (1 << spare) - 1).to_bytes(len(network), "big")


# --- names ---------------------------------------------------------------------------------------


def name(field: str, value: object) -> str:
    """Return an interface name that no rule language can take for more than a name."""
    if isinstance(value, str) and 0 < len(value) < IFNAMSIZ and value not in (".", ".."):
        body = value.removesuffix("+")
        if body and body[0] in _WIDE + "_" and not body.strip(_WIDE + "_.@-"):
            return value
    raise bad_field(field, value, _NAME)


def names(field: str, value: object) -> "tuple[str, ...]":
    """Return the interface names of a JSON list, in its order, each once."""
    if not isinstance(value, list):
        raise bad_field(field, value, f"a list, each {_NAME}")
    return tuple(dict.fromkeys([name(f"{field}[{at}]", item) for at, item in enumerate(value)]))


def name_list(field: str, text: str) -> "tuple[str, ...]":
    """Return the interface names of an annotation's comma list; empty text is none."""
    return names(field, _pieces(text))


def protocols(field: str, value: object) -> "tuple[str, ...]":
    """Return a JSON list of "udp" and "tcp", at least one, udp first."""
    if not isinstance(value, list) or not value:
        raise bad_field(field, value, 'a list of "udp" and "tcp"')
    found = [choice(f"{field}[{at}]", item, ("udp", "tcp")) for at, item in enumerate(value)]
    return tuple([word for word in ("udp", "tcp") if word in found])


def _pieces(text: str) -> "list[object]":
    """Cut a comma list and trim blanks; an empty piece in a list stays and is refused by its reader."""
    return [piece.strip() for piece in text.split(",")] if text.strip() else []


# --- back to text --------------------------------------------------------------------------------


def address_text(packed_address: bytes) -> str:
    """Print a packed address."""
    return inet_ntop(AF_INET if len(packed_address) == 4 else AF_INET6, packed_address)


def prefix_text(prefix: Prefix) -> str:
    """Print a prefix with its length."""
    return f"{address_text(prefix[0])}/{prefix[1]}"


def prefixes_text(found: Prefixes) -> "list[str]":
    """Print prefixes as `prefixes` reads them."""
    return [prefix_text(prefix) for prefix in found]


# --- the whole -----------------------------------------------------------------------------------


def coherent(redirection: Redirection) -> None:
    """Raise `CniError` 7 if the fields, each valid alone, make no sense together."""
    if redirection.outbound != "off" and not _owners(redirection):
        raise CniError(
            INVALID_NETCONF,
            "redirection: outbound traffic is redirected but no owner is exempt, so the proxy's own traffic "
            "would return to it, expected proxyUids, proxyGids or excludeOutboundGids to name the proxy",
        )
    taken: dict[int, str] = {}
    for field, number in _listeners(redirection):
        if number in taken:
            raise bad_field(f"redirection.{field}", number, f"another port than {taken[number]}")
        taken[number] = field


def _owners(redirection: Redirection) -> bool:
    exempt = redirection.proxy_uids or redirection.proxy_gids or redirection.exclude_outbound_gids
    return bool(exempt) or redirection.include_outbound_gids != ALL_IDS


def _listeners(redirection: Redirection) -> "list[tuple[str, int]]":
    outbound = redirection.outbound != "off"
    # Row O4 sends self-calls to the inbound listener whatever `inbound` says.
    inbound = redirection.inbound != "off" or (outbound and redirection.self_calls_to_inbound)
    used = [
        ("inboundPort", redirection.inbound_port, inbound),
        ("outboundPort", redirection.outbound_port, outbound),
        ("dnsPort", redirection.dns_port, outbound and redirection.dns != ()),
    ]
    return [(field, number) for field, number, is_used in used if is_used]
