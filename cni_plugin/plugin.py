"""The door a runtime knocks at: environment and stdin in, one JSON object or nothing on stdout, out.

Not a verb: `verbs` tells those stories. What is imported up here only defines values; all that acts
is imported once stdout is guarded, so that nothing it prints can spoil the answer.
"""

import os
import sys

from cni_plugin import __version__
from cni_plugin.config import netconf
from cni_plugin.model import minijson, request
from cni_plugin.model.errors import INTERNAL, IO_FAILURE, TRY_AGAIN_LATER, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any
else:
    import _signal  # `signal` itself imports enum, 4 ms

ABOUT = """\
mesh-redirect {version}: a chained CNI plugin that puts a pod's traffic through its sidecar proxy.
A container runtime starts it, with CNI_COMMAND in the environment; it speaks CNI {versions}.
For people: mesh-redirect --help
"""


def main() -> int:
    """Serve one call, by a runtime or by a person. Return the exit code."""
    if not os.environ.get("CNI_COMMAND"):
        return _person(sys.argv[1:])
    out = _guard()
    # An exception: a verb undoes its half-done work, and the runtime gets an answer. SIGINT is Python's own
    # already, but not below a shell's background, where it is inherited as ignored.
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, _signal.default_int_handler)
    # A caller that ignores it hands that down, and then the kernel keeps no child's status for us.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    answer, code = _served()
    return code if _written(out, answer) else 1


def _person(arguments: list[str]) -> int:
    if arguments:
        from cni_plugin.cli.main import main as cli  # noqa: PLC0415 - argparse and more, for people only

        return cli(arguments)
    sys.stderr.write(ABOUT.format(version=__version__, versions=", ".join(netconf.VERSIONS)))
    return 0


def _guard() -> int:
    """Return a private copy of stdout, and let file descriptor 1 lead to stderr from here on.

    A missing descriptor is opened first, or the next file or socket would take its number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def _served() -> "tuple[bytes, int]":
    """Return the answer's bytes and the exit code, whatever happens in between."""
    spoken = netconf.VERSIONS[-1]
    details = ""
    try:
        fields = request.environment(os.environ)
        if fields["command"] == "VERSION":
            return _json(_versions()), 0
        document = netconf.load(_stdin())
        if document.get("cniVersion") in netconf.VERSIONS:
            spoken = document["cniVersion"]
        result = _called(fields, document)
        return b"" if result is None else _json(result), 0
    except CniError as error:
        code, message, details = error.code, error.msg, error.details
    except KeyboardInterrupt:
        code, message = TRY_AGAIN_LATER, "a signal stopped the plugin before it was done"
    except BaseException as error:  # noqa: BLE001 - the runtime must get an answer, SystemExit or not
        sys.excepthook(type(error), error, error.__traceback__)
        code, message = INTERNAL, f"internal error, {type(error).__name__}: {error}"
        message = " ".join(message.split())[:200]
    return _json({"cniVersion": spoken, "code": code, "msg": message, "details": details}), 1


def _stdin() -> bytes:
    """Return what the runtime wrote, or little more than the limit of it: `netconf.load` refuses that."""
    parts, size = [], 0
    try:
        while size <= netconf.MAX_BYTES and (part := os.read(0, 1 << 20)):
            parts.append(part)
            size += len(part)
    except OSError as error:
        raise CniError(IO_FAILURE, f"stdin: cannot be read: {error.strerror}") from None
    return b"".join(parts)


def _versions() -> "dict[str, Any]":
    """Answer VERSION, which never fails: a runtime may ask it with anything or nothing on stdin."""
    spoken = netconf.VERSIONS[-1]
    try:
        if not os.isatty(0):
            spoken = netconf.version(netconf.load(_stdin()))
    except CniError:
        pass
    return {"cniVersion": spoken, "supportedVersions": list(netconf.VERSIONS)}


def _called(fields: "dict[str, Any]", document: "dict[str, Any]") -> "dict[str, Any] | None":
    """Check the netconf and call the verb; return ADD's result."""
    command = fields["command"]
    if command == "DEL":
        document = {key: document[key] for key in netconf.FOR_DELETE if key in document}
    conf = netconf.netconf(document)
    netconf.needs_version(command, conf.cni_version)
    asked = request.Request(netconf=conf, **fields)

    from cni_plugin import verbs  # noqa: PLC0415 - a bad request is refused sooner, and stdout is guarded

    silent = {"DEL": verbs.delete, "CHECK": verbs.check, "GC": verbs.gc, "STATUS": verbs.status}
    try:
        if command == "ADD":
            return verbs.add(asked)
        silent[command](asked)
    except CniError as error:
        verbs.log_failure(asked, error)
        raise
    return None


def _json(value: "dict[str, Any]") -> bytes:
    """Print an object; a lone surrogate, which JSON may hold and UTF-8 may not, as its escape again."""
    return (minijson.dumps(value) + "\n").encode("utf-8", "backslashreplace")


def _written(out: int, answer: bytes) -> bool:
    """Write the answer whole; False, and a line on stderr, if nobody takes it."""
    # Nothing is left to undo: a runtime that does not read must be able to end us.
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    try:
        os.set_blocking(out, True)
        while answer:
            answer = answer[os.write(out, answer) :]
    except OSError as error:
        print(f"mesh-redirect: the answer cannot be written to stdout: {error.strerror}", file=sys.stderr)
        return False
    return True
