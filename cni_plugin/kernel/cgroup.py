"""Where the version 2 cgroups are, and which of them is a pod's. Nothing is made, moved or attached here."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The kubelet's three classes of pods; a guaranteed pod is in none of the lower two.
_CLASSES = ("", "burstable", "besteffort")


def mount() -> str:
    """Return where cgroup version 2 is mounted: alone, or beside version 1; "" if it is not.

    Source: proc_pid_mountinfo(5); the type comes after the lone hyphen.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index(b"-") + 1] == b"cgroup2":
                return os.fsdecode(fields[4]).replace("\\040", " ")
    return ""


def of_pod(root: str, uid: str) -> str:
    """Return the cgroup of the pod with this uid under `root`, or "" if there is none.

    Both of the kubelet's drivers' names (kubernetes pkg/kubelet/cm: podCgroupNamePrefix and ToSystemd).
    """
    if not uid or uid.strip("0123456789abcdefABCDEF-"):
        return ""  # a static pod's uid has no hyphens; none has anything else
    for path in _names(uid):
        if os.path.isdir(f"{root}/{path}"):
            return f"{root}/{path}"
    return ""


def _names(uid: str) -> "Iterator[str]":
    slice_uid = uid.replace("-", "_")
    for kind in _CLASSES:
        name = f"kubepods-{kind}" if kind else "kubepods"
        parent = f"kubepods.slice/{name}.slice" if kind else "kubepods.slice"
        yield f"{parent}/{name}-pod{slice_uid}.slice"
        yield f"kubepods/{kind}/pod{uid}" if kind else f"kubepods/pod{uid}"


def ancestors(path: str) -> "Iterator[str]":
    """Yield `path` and every cgroup above it, up to the mount."""
    device = os.stat(path).st_dev
    path = os.path.realpath(path)
    while os.stat(path).st_dev == device:
        yield path
        path = os.path.dirname(path)


def identity(path: str) -> int:
    """Return the cgroup's id, unique while the machine runs (kernfs: the inode). Raises `OSError`."""
    return os.stat(path).st_ino
