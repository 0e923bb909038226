"""One attachment's redirection: which backend makes it, what an earlier ADD left, what DEL takes away.

Not a verb, and no record is written here: the process is in the netns already, `verbs` keeps what comes back.
Every function raises `CniError`.
"""

from cni_plugin import backends
from cni_plugin.backends import routes
from cni_plugin.backends.common import NO_RECORD, Placement, Unsupported
from cni_plugin.config import fields
from cni_plugin.kernel import netns
from cni_plugin.model.errors import APPLY_FAILED, NO_BACKEND, CniError
from cni_plugin.model.redirection import Redirection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_plugin.backends import Backend
    from cni_plugin.model.request import Netconf

    Record = dict[str, Any]


def replace(
    conf: "Netconf",
    redirection: Redirection | None,
    families: tuple[int, ...],
    earlier: "Record | None",
    pod_uid: str = "",
) -> "Record":
    """Make `redirection` true, or nothing if it is None, and take away what `earlier` left beside it."""
    made: Record = {"netnsCookie": netns.cookie(), "podUid": pod_uid}
    if redirection is not None:
        made |= _apply(conf, redirection, families, pod_uid)
    if earlier is not None and earlier.get("backend"):
        _retire(conf, earlier, made, redirection)
    return made


def _load(conf: "Netconf", name: str, pod_uid: str = "") -> "Backend":
    place = Placement(bpffs=conf.bpffs, cgroup_root=conf.cgroup_root, cgroup=conf.cgroup, pod_uid=pod_uid)
    return backends.load(name, conf.state_dir, place)


def _apply(conf: "Netconf", redirection: Redirection, families: tuple[int, ...], pod_uid: str) -> "Record":
    """Apply with the first backend that can; why the others cannot goes into the record."""
    refused: dict[str, str] = {}
    for name in conf.backends:
        backend = _load(conf, name, pod_uid)
        try:
            backend.probe(redirection, families)
            backend.add(redirection, families)
        except Unsupported as error:
            refused[name] = error.reason
            continue
        except OSError as error:
            raise CniError(APPLY_FAILED, f"{name}: the redirection was refused: {error}") from None
        return {"backend": name, "families": list(families), "refused": refused}
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise CniError(NO_BACKEND, f"no backend can install this redirection: {reasons}")


def _retire(conf: "Netconf", earlier: "Record", made: "Record", kept: Redirection | None) -> None:
    """Remove what an earlier ADD made and this one did not replace."""
    old, _ = _recorded(earlier)
    families = tuple(made.get("families", ()))
    try:
        if earlier["backend"] == made.get("backend"):
            routes.delete(old, kept, families)
        else:
            _load(conf, earlier["backend"]).delete(old, kept, families)
    except (OSError, Unsupported) as error:
        raise CniError(APPLY_FAILED, f"the earlier redirection cannot be removed: {error}") from None


def remove(conf: "Netconf", record: "Record") -> None:
    """Remove what `record` says."""
    try:
        _load(conf, record["backend"]).delete(_recorded(record)[0])
    except Unsupported:
        pass  # a host that has lost its tools since ADD must not keep a sandbox for ever
    except OSError as error:
        raise CniError(APPLY_FAILED, f"the redirection cannot be removed: {error}") from None


def forget(conf: "Netconf", record: "Record") -> None:
    """Remove what is left of `record`, finished or not, outside its netns, which is gone."""
    for name in (record["backend"],) if "backend" in record else backends.NAMES:
        try:
            _load(conf, name).forget(record["netnsCookie"])
        except Unsupported:
            pass  # as above
        except OSError as error:
            raise CniError(APPLY_FAILED, f"the redirection cannot be removed: {error}") from None


def sweep(conf: "Netconf", unfinished: "Record | None") -> None:
    """Remove whatever of ours is found, of every backend, and what an `unfinished` ADD made beside rules."""
    try:
        redirection = fields.from_json("record.redirection", (unfinished or {})["redirection"])
    except (CniError, KeyError):
        redirection = NO_RECORD
    for name in backends.NAMES:
        try:
            _load(conf, name).delete(redirection)
        except Unsupported:
            pass  # what cannot work here has made nothing here
        except OSError as error:
            raise CniError(APPLY_FAILED, f"the redirection cannot be removed: {error}") from None


def readable(record: "Record") -> None:
    """Raise `ValueError` if `record`, which names a backend, does not say what it made."""
    try:
        known = record["backend"] in backends.NAMES and isinstance(record["netns"], str)
        _, families = _recorded(record)
    except (CniError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    if not known or not set(families) <= {4, 6}:
        raise ValueError("backend, netns or families are not ours")


def differences(conf: "Netconf", record: "Record") -> "list[str]":
    """Return what is missing, changed or added against `record`, a line each."""
    cookie = netns.cookie()
    if cookie != record.get("netnsCookie", cookie):
        return ["CNI_NETNS is not the network namespace that ADD redirected"]
    redirection, families = _recorded(record)
    try:
        backend = _load(conf, record["backend"], record.get("podUid", ""))
        return backend.check(redirection, families)
    except (OSError, Unsupported) as error:
        raise CniError(APPLY_FAILED, f"the rules cannot be read: {error}") from None


def trial(conf: "Netconf", redirection: Redirection) -> "list[str]":
    """Try each backend in a scratch netns, and stay there; return why none works, or [] if one does."""
    reasons = []
    for name in conf.backends:
        try:
            netns.unshare(netns.CLONE_NEWNET)
            backend = _load(conf, name)
            backend.probe(redirection, (4, 6))
            backend.add(redirection, (4, 6))
            backend.forget(netns.cookie())
        except (OSError, Unsupported) as error:
            reasons.append(f"{name}: {error}")
        else:
            return []
    return reasons


def _recorded(record: "Record") -> "tuple[Redirection, tuple[int, ...]]":
    return fields.from_json("record.redirection", record["redirection"]), tuple(record["families"])
