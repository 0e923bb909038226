"""One line of JSON for each call, to stderr (the runtime's log) and to a bounded file.

Not `logging` (14 ms to import). Writing a line can fail, and then it is lost: an ADD never waits for its log.
"""

import os
import time

from cni_plugin.model import minijson

_LEVELS = ("debug", "info", "warn", "error")
# Two files of this many bytes at most.
_LIMIT = 4 << 20


def write(path: str, threshold: str, level: str, fields: "dict[str, object]") -> None:
    """Append `fields` as one line if `level` is at least `threshold`."""
    if _LEVELS.index(level) < _LEVELS.index(threshold):
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = (minijson.dumps({"time": stamp, "level": level, **fields}) + "\n").encode(
        "utf-8", "backslashreplace"
    )
    try:
        os.write(2, line)
    except OSError:
        pass
    try:
        _append(path, line)
    except OSError:
        pass


def _append(path: str, line: bytes) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    # O_APPEND: lines of concurrent plugins do not mix. O_NONBLOCK: a FIFO without reader is not waited for.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        if os.fstat(fd).st_size > _LIMIT:
            os.rename(path, path + ".1")
        os.write(fd, line)
    finally:
        os.close(fd)
