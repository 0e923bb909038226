"""Children in other namespaces: a program to run, or Python to call, with its output caught. Not a shell.

`subprocess` costs 12 ms to import, and cannot enter a user namespace between fork and exec.
"""

import os

from cni_plugin.kernel import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Runtimes start plugins with an empty PATH.
DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin")


class Failed(Exception):
    """A child did not do its work; the text says what it printed, or how it ended."""


def find(name: str) -> str:
    """Return the path of the program `name`, or "" if no directory of `DIRECTORIES` has it."""
    for directory in DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return ""


class Child:
    """A forked child that calls `work` and hands its text back. Start several, then wait for each."""

    def __init__(self, work: "Callable[[], str]") -> None:
        # Files in memory, not pipes: neither side can wait for the other to read.
        self._output = os.memfd_create("output", os.MFD_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _serve(work, self._output)

    def wait(self) -> str:
        """Return the child's text. Raises `Failed`."""
        _, status = os.waitpid(self._pid, 0)
        text = _contents(self._output)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            ended = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
            raise Failed(text.strip() or f"the child {ended}")
        return text


def _serve(work: "Callable[[], str]", output: int) -> None:
    code = 1
    try:
        text = work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must be told
        text = f"{type(error).__name__}: {error}" if not isinstance(error, Failed) else str(error)
    try:
        data = text.encode()
        while data:
            data = data[os.write(output, data) :]
    finally:
        # No clean-up of the parent's: its files and buffers are not this process's to close.
        os._exit(code)


def run(path: str, arguments: "tuple[str, ...]", text: str, environment: "dict[str, str]") -> str:
    """Run a program in the owning user namespace of our network namespace; return what it printed.

    To be called in a `Child`: the way into a user namespace is one way. Raises `Failed`.
    """
    given = os.memfd_create("input", os.MFD_CLOEXEC)
    data = text.encode()
    while data:
        data = data[os.write(given, data) :]
    os.lseek(given, 0, os.SEEK_SET)
    printed = os.memfd_create("printed", os.MFD_CLOEXEC)
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            netns.enter_owning_user_namespace()
            for source, target in ((given, 0), (printed, 1), (said, 2)):
                os.dup2(source, target)
            os.execve(path, (path, *arguments), environment)  # noqa: S606 - a path and a list of ours
        except OSError as error:
            os.write(said, f"{path}: {error.strerror}".encode())
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise Failed(_contents(said).strip() or f"{path} ended with {code}")
    return _contents(printed)


def _contents(fd: int) -> str:
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    os.close(fd)
    return data.decode("utf-8", "replace")
