"""What a redirection needs beside rules: loopback up, the IPv6 passthrough source, tproxy's route by mark.

The same for every backend. These are harmless without rules, so they are made before and removed after.
Not the calls to the kernel: `kernel.rtnl` makes those.
"""

import errno
from _socket import AF_INET6, inet_ntop

from cni_plugin.kernel.rtnl import Routes
from cni_plugin.model.redirection import LOOPBACK, Redirection

# A namespace with IPv6 switched off (disable_ipv6, or a kernel without it) carries no IPv6 to redirect.
_IPV6_LOOPBACK = LOOPBACK[1][0]
_NO_IPV6 = (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)


# One thing to make: ("address", address), ("route", family, table) or ("rule", family, mark, table).
Part = tuple[str | int | bytes, ...]


class Undo:
    """What `add` made; called, it is taken away again, newest first."""

    def __init__(self) -> None:
        self.made: list[Part] = []
        self.raised_loopback = False

    def __call__(self) -> None:
        """Undo it. Raises `OSError`."""
        routes = Routes()
        try:
            for part in reversed(self.made):
                _remove(routes, part)
            if self.raised_loopback:
                routes.set_loopback(False)
        finally:
            routes.close()


def add(redirection: Redirection, families: tuple[int, ...]) -> Undo:
    """Make what is not there yet; return what undoes just that. Raises `OSError`, with nothing left."""
    undo = Undo()
    routes = Routes()
    try:
        if not routes.loopback_is_up():
            routes.set_loopback(True)
            undo.raised_loopback = True
        for part in _parts(redirection, families):
            if _make(routes, part):
                undo.made.append(part)
    except OSError:
        undo()
        raise
    finally:
        routes.close()
    return undo


def check(redirection: Redirection, families: tuple[int, ...]) -> "list[str]":
    """Return what is missing, a line each."""
    routes = Routes()
    try:
        lines = [] if routes.loopback_is_up() else ["interface lo is down"]
        if not routes.has_address(_IPV6_LOOPBACK):
            families = tuple(family for family in families if family == 4)
        for part in _parts(redirection, families):
            words = _missing(routes, part)
            if words:
                lines.append(f"{words} is missing")
        return lines
    finally:
        routes.close()


def delete(
    redirection: Redirection, kept: "Redirection | None" = None, families: tuple[int, ...] = ()
) -> None:
    """Remove what `add` makes for `redirection`, whatever of it is there, but for what `kept` needs.

    Loopback stays up: others use it by now. Raises `OSError`.
    """
    needed = _parts(kept, families) if kept is not None else []
    routes = Routes()
    try:
        for part in reversed(_parts(redirection, (4, 6))):
            if part not in needed:
                _remove(routes, part)
    finally:
        routes.close()


def _parts(redirection: Redirection, families: tuple[int, ...]) -> "list[Part]":
    # IPv6 has no 127/8 that is local as a whole, so its passthrough sources must be addresses of lo.
    sources = redirection.passthrough_sources if 6 in families else ()
    parts: list[Part] = [("address", address) for address, length in sources if length == 128]
    if redirection.inbound == "tproxy":
        for family in families:
            # The route first: for a moment a rule alone would send marked packets to an empty table.
            parts.append(("route", family, redirection.tproxy_table))
            parts.append(("rule", family, redirection.tproxy_mark, redirection.tproxy_table))
    return parts


def _make(routes: Routes, part: Part) -> bool:
    try:
        match part:
            case ("address", bytes(address)):
                return routes.add_address(address)
            case ("route", int(family), int(table)):
                return routes.add_local_route(family, table)
            case ("rule", int(family), int(mark), int(table)):
                return routes.add_rule(family, mark, table)
    except OSError as error:
        if error.errno not in _NO_IPV6 or _family(part) == 4:
            raise
    return False


def _remove(routes: Routes, part: Part) -> None:
    try:
        match part:
            case ("address", bytes(address)):
                routes.remove_address(address)
            case ("route", int(family), int(table)):
                routes.remove_local_route(family, table)
            case ("rule", int(family), int(mark), int(table)):
                routes.remove_rule(family, mark, table)
    except OSError as error:
        if error.errno not in _NO_IPV6 or _family(part) == 4:
            raise


def _missing(routes: Routes, part: Part) -> str:
    """Return the name of `part` for people if it is not there."""
    match part:
        case ("address", bytes(address)):
            return "" if routes.has_address(address) else f"address {inet_ntop(AF_INET6, address)} on lo"
        case ("route", int(family), int(table)):
            words = f"ip -{family} route local default dev lo table {table}"
            return "" if routes.has_local_route(family, table) else words
        case ("rule", int(family), int(mark), int(table)):
            words = f"ip -{family} rule fwmark {mark:#x} lookup {table}"
            return "" if routes.has_rule(family, mark, table) else words
    raise ValueError(f"no such part: {part!r}")


def _family(part: Part) -> object:
    return 6 if part[0] == "address" else part[1]
