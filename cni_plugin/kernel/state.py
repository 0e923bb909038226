"""Attachment records: one JSON file each under `<stateDir>/attachments`, replaced by rename.

Not a database: a record is written by ADD, read by CHECK, DEL, GC and `explain`, and removed by DEL and GC.
On a tmpfs it dies with the network namespaces it speaks of.
"""

import os

from cni_plugin.model import minijson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SUFFIX = ".json"
_DRAFT = ".draft-"


def _directory(state_dir: str) -> str:
    return f"{state_dir}/attachments"


def _path(state_dir: str, container_id: str, ifname: str) -> str:
    return f"{_directory(state_dir)}/{container_id}:{ifname}{_SUFFIX}"


class Draft:
    """A record about to be written. Made before the namespace is touched, so a full disk is found in time."""

    def __init__(self, state_dir: str, container_id: str, ifname: str) -> None:
        os.makedirs(_directory(state_dir), mode=0o700, exist_ok=True)
        self._final = _path(state_dir, container_id, ifname)
        self._draft = f"{_directory(state_dir)}/{_DRAFT}{os.getpid()}-{container_id}:{ifname}"
        self._fd = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def commit(self, record: "dict[str, Any]") -> None:
        """Write `record` and put it in place; raises `OSError`, and the old record stays."""
        try:
            # An environment may hold what is not UTF-8; it must not cost the record.
            data = minijson.dumps(record).encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
            os.rename(self._draft, self._final)
        except OSError:
            self.abandon()
            raise
        os.close(self._fd)

    def abandon(self) -> None:
        """Throw the draft away."""
        os.close(self._fd)
        os.unlink(self._draft)


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
    except FileNotFoundError:
        pass


def attachments(state_dir: str) -> "Iterator[tuple[str, str]]":
    """Yield (container id, ifname) of every record, and drop drafts whose writer is gone."""
    try:
        names = os.listdir(_directory(state_dir))
    except FileNotFoundError:
        return
    for name in sorted(names):
        if name.startswith(_DRAFT):
            _drop_orphan(f"{_directory(state_dir)}/{name}", name)
        elif name.endswith(_SUFFIX) and ":" in name:
            container_id, _, ifname = name.removesuffix(_SUFFIX).partition(":")
            yield container_id, ifname


def _drop_orphan(path: str, name: str) -> None:
    pid = name.removeprefix(_DRAFT).partition("-")[0]
    if not os.path.exists(f"/proc/{pid}"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
