"""A probe as a person writes it: "uid=1000 dst=10.1.2.3:443", "in src=10.9.8.7 port=8080".

Not its judgement: `model.contract` says which row decides.
"""

from cni_plugin.model import parse
from cni_plugin.model.contract import Probe
from cni_plugin.model.errors import INVALID_ENVIRONMENT, CniError

KEYS = ("dst", "src", "port", "uid", "gid", "proto", "if")


def probe(text: str, own_addresses: "list[bytes]") -> Probe:
    """Return the probe in `text`; direction out, TCP, uid 0 and gid 0 where it does not say.

    Inbound needs a port and takes the pod's own address as destination; outbound needs dst and a port.
    Raises `CniError` naming the probe and what is wrong with it.
    """
    words = text.split()
    direction = words.pop(0) if words and words[0] in ("in", "out") else "out"
    pairs = _pairs(text, words)
    destination, port_text = _destination(pairs.get("dst", ""))
    port_text = pairs.get("port", port_text)
    source = parse.address(_where(text, "src"), pairs["src"]) if "src" in pairs else b""
    if destination:
        packed = parse.address(_where(text, "dst"), destination)
    elif direction == "in":
        packed = _own(source, own_addresses)
    else:
        raise _bad(text, "dst=ADDRESS is missing")
    if not port_text:
        raise _bad(text, "the port is missing: dst=ADDRESS:PORT, dst=[ADDRESS]:PORT or port=PORT")
    if source and len(source) != len(packed):
        raise _bad(text, "src and dst are of different families")
    return Probe(
        direction=direction,
        protocol=parse.choice(_where(text, "proto"), pairs.get("proto", "tcp"), ("tcp", "udp")),
        destination=packed,
        port=parse.integer_text(_where(text, "port"), port_text, 0, parse.MAX_PORT),
        source=source,
        uid=parse.integer_text(_where(text, "uid"), pairs.get("uid", "0"), 0, parse.MAX_ID),
        gid=parse.integer_text(_where(text, "gid"), pairs.get("gid", "0"), 0, parse.MAX_ID),
        interface=parse.name(_where(text, "if"), pairs.get("if", Probe.interface)),
        own_addresses=tuple(own_addresses),
    )


def _pairs(text: str, words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS or key in pairs:
            raise _bad(text, f"{word!r} is not one of {', '.join(f'{known}=' for known in KEYS)}, each once")
        pairs[key] = value
    return pairs


def _destination(text: str) -> tuple[str, str]:
    """Split "10.1.2.3:443", "[fd00::1]:443", "fd00::1" into address and port."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, rest.removeprefix(":")
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, port
    return text, ""


def _own(source: bytes, own_addresses: "list[bytes]") -> bytes:
    """Return the pod's address of the source's family; without one, any: inbound rows do not read it."""
    for address in own_addresses:
        if len(address) == len(source or address):
            return address
    return bytes(len(source) or 4)


def _where(text: str, key: str) -> str:
    return f"--probe {text!r}: {key}"


def _bad(text: str, complaint: str) -> CniError:
    return CniError(INVALID_ENVIRONMENT, f"--probe {text!r}: {complaint}")
