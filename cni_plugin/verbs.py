"""The verbs of the CNI spec, each a story on one screen: decide, act, record, answer.

Not the protocol (`plugin`), not the rules (`backends`). Every function raises `CniError` alone.
Long because all the verbs and their steps are told here, and share them.
"""

import time

from cni_plugin.config import fields
from cni_plugin.kernel import journal, netns, state
from cni_plugin.mesh import dialect
from cni_plugin.model import errors, result
from cni_plugin.model.decision import REJECT, RETRY, Decision
from cni_plugin.model.errors import CniError
from cni_plugin.model.redirection import Redirection, effective_families
from cni_plugin.model.request import Netconf, Request

# Differences that CHECK names in its message; the rest are in the details.
_NAMED = 3

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any
else:
    import _signal  # `signal` itself imports enum, 4 ms

Attachment = tuple[str, str]  # container id, ifname


def add(request: Request) -> "dict[str, Any]":
    """Put the sandbox's traffic through its proxy if it is a meshed pod's; return the Result."""
    started = time.monotonic()
    conf = request.netconf
    addresses = result.addresses(conf.prev_result)
    decision = dialect.decide(conf, request.args, addresses)
    decided = time.monotonic()
    _refuse(decision)
    draft = _draft(request)
    with _undisturbed():
        try:
            record = _new_record(request, decision)
            record |= _act(request, decision.redirection, addresses, draft, record)
            record["timings"] = _milliseconds(started, decided, time.monotonic())
        except BaseException:
            draft.abandon()
            raise
        _commit(request, draft, record)
    _log(request, "warn" if decision.warnings else "info", record)
    return result.convert(conf.prev_result, conf.cni_version)


def delete(request: Request) -> None:
    """Remove the redirection and its record; again, without netns or after a reboot, it does nothing."""
    conf = request.netconf
    attachment = (request.container_id, request.ifname)
    draft = None
    try:
        if state.exists(conf.state_dir, *attachment):
            draft = state.Draft(conf.state_dir, *attachment)
    except OSError:
        pass  # a full disk must not keep a sandbox for ever
    try:
        record = _forget(conf, attachment, request.netns, draft)
    except CniError as error:
        # The rules are gone. A record that cannot be removed must not keep a sandbox for ever either; its
        # cookie says that it is nobody's.
        if error.code != errors.STATE_FAILED:
            raise
        _log(request, "warn", {"warnings": [error.msg]})
        return
    _log(request, "info", record or {})


def check(request: Request) -> None:
    """Raise error 104, naming what is missing, changed or added, unless all is as ADD left it."""
    record = _record(request.netconf, (request.container_id, request.ifname))
    if record is None:
        raise CniError(
            errors.CHECK_FAILED, "no record of this attachment: ADD did not run, or its state is lost"
        )
    if not record.get("backend"):
        return
    from cni_plugin.backends import attach  # noqa: PLC0415 - 3 ms that an unmeshed pod does not pay

    try:
        with netns.entered(request.netns):
            lines = attach.differences(request.netconf, record)
    except netns.EnterFailed as error:
        raise _netns_failed(request, error) from None
    if lines:
        # Runtimes print message and details in a row, so details only hold what the message does not.
        rest = lines[_NAMED:]
        more = f" (and {len(rest)} more)" if rest else ""
        raise CniError(errors.CHECK_FAILED, "; ".join(lines[:_NAMED]) + more, "\n".join(rest))


def gc(request: Request) -> None:
    """Remove what belongs to attachments of this network that are no longer valid."""
    conf = request.netconf
    if conf.valid_attachments is None:
        # `cnitool gc` sends no list: libcni has sent a DEL for what it knew; nothing is known to be stale.
        return
    failed = []
    try:
        known = state.attachments(conf.state_dir)
    except OSError as error:
        raise _state_failed(conf, error) from None
    for attachment in known:
        if attachment not in conf.valid_attachments:
            try:
                _collect(conf, attachment)
            except CniError as error:
                failed.append(f"{':'.join(attachment)}: {error}")
    if failed:
        message = f"{len(failed)} stale attachments could not be removed"
        raise CniError(errors.APPLY_FAILED, message, "\n".join(failed))


def status(request: Request) -> None:
    """Raise error 50 with the reasons if no ADD could succeed: every backend is tried in a scratch netns."""
    conf = request.netconf
    try:
        state.Draft(conf.state_dir, "status", "status").abandon()
    except OSError as error:
        raise CniError(
            errors.NOT_AVAILABLE, f"stateDir {conf.state_dir} is not writable: {error.strerror}"
        ) from None
    dialect.load(conf.mesh)
    from cni_plugin.backends import attach  # noqa: PLC0415 - only STATUS and meshed pods need it

    wanted: dict[str, Any] = {"proxy_uids": ((1337, 1337),), **conf.redirection}
    reasons = attach.trial(conf, Redirection(**wanted))
    if reasons:
        raise CniError(errors.NOT_AVAILABLE, "no backend works on this node: " + "; ".join(reasons))


# -- deciding --------------------------------------------------------------------------------------


def _refuse(decision: Decision) -> None:
    if decision.verdict == RETRY:
        raise CniError(errors.TRY_AGAIN_LATER, f"{decision.reason}: {decision.detail}")
    if decision.verdict == REJECT:
        raise CniError(errors.REJECTED, f"{decision.reason}: {decision.detail}")


# -- acting ----------------------------------------------------------------------------------------


def _act(
    request: Request,
    redirection: Redirection | None,
    addresses: list[bytes],
    draft: state.Draft,
    record: "dict[str, Any]",
) -> "dict[str, Any]":
    """Replace what earlier ADDs left in the netns by `redirection`; return the rest of `record`."""
    conf = request.netconf
    earlier, damaged = _recalled(conf, (request.container_id, request.ifname))
    unclear = damaged or draft.unfinished is not None
    if redirection is None and not unclear and not (earlier and earlier.get("backend")):
        return {}
    from cni_plugin.backends import attach  # noqa: PLC0415 - 3 ms that an unmeshed pod does not pay

    if netns.is_own(request.netns):
        # A pod on the host's network has no sandbox, and the host's traffic is nobody's to redirect.
        expected = "a sandbox's network namespace, not the one the plugin runs in"
        raise errors.bad_field("CNI_NETNS", request.netns, expected, errors.INVALID_ENVIRONMENT)
    families = () if redirection is None else effective_families(redirection, addresses)
    try:
        with netns.entered(request.netns):
            if unclear:
                attach.sweep(conf, draft.unfinished)
                draft.settled()
            draft.begin({**record, "families": list(families), "netnsCookie": netns.cookie()})
            pod_uid = request.args.get("K8S_POD_UID", "")
            return attach.replace(conf, redirection, families, earlier, pod_uid)
    except netns.EnterFailed as error:
        raise _netns_failed(request, error) from None
    except OSError as error:
        raise _state_failed(conf, error) from None


def _collect(conf: Netconf, attachment: Attachment) -> None:
    """Remove a stale attachment of this network, unless a call is just at work on it."""
    record, damaged = _recalled(conf, attachment)
    # A record that cannot be read names no network; DEL by its container still finds it.
    if damaged or (record is not None and record.get("network") != conf.name):
        return
    try:
        draft = state.Draft(conf.state_dir, *attachment, wait=False)
    except BlockingIOError:
        return
    except OSError as error:
        raise _state_failed(conf, error) from None
    known = record or draft.unfinished
    if known is not None and known.get("network") == conf.name:
        _forget(conf, attachment, str(known.get("netns", "")), draft)
    else:
        draft.abandon()


def _forget(
    conf: Netconf, attachment: Attachment, path: str, draft: state.Draft | None
) -> "dict[str, Any] | None":
    """Remove an attachment's redirection from the netns at `path`, then its record, which is returned."""
    try:
        record, _ = _recalled(conf, attachment)
        try:
            _remove(conf, attachment, path, record, draft.unfinished if draft else None)
        except OSError as error:
            # Other attachments' records cannot be read, so whose rules these are is not known.
            message = f"the redirection cannot be removed: {error}"
            raise CniError(errors.APPLY_FAILED, message) from None
        state.remove(conf.state_dir, *attachment)
        if draft:
            draft.settled()
    except OSError as error:
        raise _state_failed(conf, error) from None
    finally:
        if draft:
            draft.abandon()
    return record


def _remove(
    conf: Netconf,
    attachment: Attachment,
    path: str,
    record: "dict[str, Any] | None",
    unfinished: "dict[str, Any] | None" = None,
) -> None:
    """Remove from the netns at `path`, if it is there, what `record` says and what is `unfinished`.

    With neither, whatever of ours is there.
    """
    known = record or unfinished
    made = record is None or bool(record.get("backend"))
    if netns.is_own(path) or not (made or unfinished is not None) or not (path or known):
        return
    from cni_plugin.backends import attach  # noqa: PLC0415 - 3 ms that an unmeshed pod does not pay

    try:
        if path:
            with netns.entered(path):
                if not _is_of_another(conf, attachment, known):
                    if record is None or unfinished is not None:
                        attach.sweep(conf, unfinished)
                    if record is not None and made:
                        attach.remove(conf, record)
                    return
                if known is None or known.get("netnsCookie") in (None, netns.cookie()):
                    return
    except netns.EnterFailed as error:
        if not error.gone:
            message = f"the redirection cannot be removed: {path} cannot be entered: {error.strerror}"
            raise CniError(errors.NETNS_FAILED, message) from None
    # A namespace that is gone took what was in it; what is elsewhere is found by its cookie.
    if known is not None and known.get("netnsCookie"):
        attach.forget(conf, known)


def _is_of_another(conf: Netconf, attachment: Attachment, known: "dict[str, Any] | None") -> bool:
    """Tell whether the redirection in this netns is another attachment's.

    Paths are used again, cookies are not; and a sandbox may have several interfaces, but has one redirection.
    """
    here = netns.cookie()
    if not here:
        return False
    if known and known.get("netnsCookie", here) != here:
        return True
    for other in state.attachments(conf.state_dir):
        if other == attachment or (known and other[0] != attachment[0]):
            continue
        record, _ = _recalled(conf, other)
        if record and record.get("backend") and record.get("netnsCookie") == here:
            return True
    return False


def _netns_failed(request: Request, error: netns.EnterFailed) -> CniError:
    if error.gone:
        expected = "the path of a network namespace"
        return errors.bad_field("CNI_NETNS", request.netns, expected, errors.INVALID_ENVIRONMENT)
    return CniError(errors.NETNS_FAILED, f"CNI_NETNS {request.netns} cannot be entered: {error.strerror}")


class _undisturbed:  # noqa: N801 - read as `with _undisturbed():`
    """Let a signal wait until what is begun is done: half of it would be nobody's to undo."""

    _WAITING = (_signal.SIGTERM, _signal.SIGINT)

    def __enter__(self) -> None:
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, self._WAITING)

    def __exit__(self, kind: object, *_: object) -> None:
        # Too late to stop what is done: the answer says that it is.
        while kind is None and _signal.sigtimedwait(self._WAITING, 0):
            pass
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)


# -- records ---------------------------------------------------------------------------------------


def _record(conf: Netconf, attachment: Attachment) -> "dict[str, Any] | None":
    """Return the attachment's record, or None if there is none. Raises `CniError` for a damaged one."""
    try:
        record = state.load(conf.state_dir, *attachment)
        if record and record.get("backend"):
            from cni_plugin.backends import attach  # noqa: PLC0415 - 3 ms that an unmeshed pod does not pay

            attach.readable(record)
    except (OSError, ValueError) as error:
        raise CniError(
            errors.STATE_FAILED, f"the record in {conf.state_dir} cannot be read: {error}"
        ) from None
    return record


def _recalled(conf: Netconf, attachment: Attachment) -> "tuple[dict[str, Any] | None, bool]":
    """Return the attachment's record, and whether it is None because it is damaged."""
    try:
        return _record(conf, attachment), False
    except CniError:
        return None, True


def _new_record(request: Request, decision: Decision) -> "dict[str, Any]":
    shown = decision.redirection
    return {
        "containerId": request.container_id,
        "ifname": request.ifname,
        "netns": request.netns,
        "network": request.netconf.name,
        "pod": _pod(request),
        "mesh": decision.mesh,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "detail": decision.detail,
        "origins": decision.origins,
        "unknown": list(decision.unknown),
        "warnings": list(decision.warnings),
        "redirection": None if shown is None else fields.to_json(shown),
    }


def _pod(request: Request) -> str:
    return "/".join(filter(None, map(request.args.get, ("K8S_POD_NAMESPACE", "K8S_POD_NAME"))))


def _draft(request: Request) -> state.Draft:
    try:
        return state.Draft(request.netconf.state_dir, request.container_id, request.ifname)
    except OSError as error:
        raise _state_failed(request.netconf, error) from None


def _commit(request: Request, draft: state.Draft, record: "dict[str, Any]") -> None:
    """Put the record in place; if that fails the ADD fails, and leaves no rules behind."""
    try:
        draft.commit(record)
    except OSError as error:
        try:
            _remove(request.netconf, (request.container_id, request.ifname), request.netns, record)
        except CniError:
            pass  # the failure to report is the first one
        raise _state_failed(request.netconf, error) from None


def _state_failed(conf: Netconf, error: OSError) -> CniError:
    return CniError(errors.STATE_FAILED, f"stateDir {conf.state_dir}: {error.strerror}")


def _milliseconds(started: float, decided: float, done: float) -> "dict[str, float]":
    return {"decide": round((decided - started) * 1e3, 3), "act": round((done - decided) * 1e3, 3)}


_LOGGED = (
    "network",
    "mesh",
    "verdict",
    "reason",
    "detail",
    "unknown",
    "warnings",
    "backend",
    "refused",
    "timings",
    "code",
    "error",
)


def log_failure(request: Request, error: CniError) -> None:
    """Log why the call fails: what the runtime makes of the answer is not always to be found."""
    level = "warn" if error.code == errors.TRY_AGAIN_LATER else "error"
    _log(request, level, {"code": error.code, "error": "; ".join(filter(None, (error.msg, error.details)))})


def _log(request: Request, level: str, record: "dict[str, Any]") -> None:
    conf = request.netconf
    line: dict[str, object] = {
        "verb": request.command,
        "containerId": request.container_id,
        "ifname": request.ifname,
    }
    pod = record.get("pod") or _pod(request)
    if pod:
        line["pod"] = pod
    line |= {key: record[key] for key in _LOGGED if record.get(key)}
    journal.write(conf.log_file, conf.log_level, level, line)
