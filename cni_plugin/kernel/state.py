"""Attachment records: one JSON file each under `<stateDir>/attachments`, replaced by rename.

Not a database: a record is written by ADD, read by CHECK, DEL, GC and `explain`, and removed by DEL and GC.
On a tmpfs it dies with the network namespaces it speaks of.
"""

import fcntl
import os

from cni_plugin.model import minijson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SUFFIX = ".json"
_DRAFT = ".draft-"


def _directory(state_dir: str) -> str:
    return f"{state_dir}/attachments"


def _path(state_dir: str, container_id: str, ifname: str) -> str:
    return f"{_directory(state_dir)}/{container_id}:{ifname}{_SUFFIX}"


class Draft:
    """A record about to be written, and the lock of its attachment: a second call waits until it is done.

    Made before the namespace is touched, so a full disk is found in time. The lock is the file's, so children
    of a killed writer hold it until they end. Such a writer leaves its draft: `unfinished` is what it began,
    {} if that cannot be read, None if nobody left anything half done.
    """

    def __init__(self, state_dir: str, container_id: str, ifname: str, wait: bool = True) -> None:
        """Raise `OSError`; `BlockingIOError` without `wait` where another call is at work."""
        os.makedirs(_directory(state_dir), mode=0o700, exist_ok=True)
        self._final = _path(state_dir, container_id, ifname)
        self._draft = f"{_directory(state_dir)}/{_DRAFT}{container_id}:{ifname}"
        self._fd = _locked(self._draft, wait)
        left = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self.unfinished = _object(left) if left else None

    def begin(self, record: "dict[str, Any]") -> None:
        """Note what is about to be done, for who finds it half done. Raises `OSError`."""
        self._write(record)

    def commit(self, record: "dict[str, Any]") -> None:
        """Write `record` and put it in place; raises `OSError`, and the old record stays."""
        self._write(record)
        os.fsync(self._fd)
        os.rename(self._draft, self._final)
        os.close(self._fd)

    def settled(self) -> None:
        """Note that what was half done is undone."""
        self.unfinished = None

    def abandon(self) -> None:
        """Throw the draft away, unless it still tells of something half done."""
        if self.unfinished is None:
            os.unlink(self._draft)
        os.close(self._fd)

    def _write(self, record: "dict[str, Any]") -> None:
        # An environment may hold what is not UTF-8; it must not cost the record.
        data = minijson.dumps(record).encode("utf-8", "backslashreplace")
        # Over what is there: room once had is not given back, to be fought for again.
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], written)
        os.ftruncate(self._fd, written)


def _locked(path: str, wait: bool) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever had it has renamed or removed the file we waited for: then it is not the draft any more.
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)


def _object(data: bytes) -> "dict[str, Any]":
    try:
        found = minijson.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def load(state_dir: str, container_id: str, ifname: str) -> "dict[str, Any] | None":
    """Return the record, or None if there is none. Raises `OSError`, or `ValueError` for a damaged one."""
    try:
        with open(_path(state_dir, container_id, ifname), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    record = minijson.loads(data)
    if not isinstance(record, dict):
        raise ValueError("not a record")
    return record


def remove(state_dir: str, container_id: str, ifname: str) -> None:
    """Remove the record; it is no error if there is none."""
    try:
        os.unlink(_path(state_dir, container_id, ifname))
    except (FileNotFoundError, NotADirectoryError):
        pass


def exists(state_dir: str, container_id: str, ifname: str) -> bool:
    """Tell whether there is a record or a draft."""
    draft = f"{_directory(state_dir)}/{_DRAFT}{container_id}:{ifname}"
    return os.path.lexists(draft) or os.path.lexists(_path(state_dir, container_id, ifname))


def attachments(state_dir: str) -> "list[tuple[str, str]]":
    """Return (container id, ifname) of every record and draft. Raises `OSError`."""
    try:
        names = os.listdir(_directory(state_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}
    stems |= {name.removeprefix(_DRAFT) for name in names if name.startswith(_DRAFT)}
    pairs = [stem.partition(":") for stem in sorted(stems)]
    return [(container_id, ifname) for container_id, colon, ifname in pairs if colon]
