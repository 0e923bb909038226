"""What eBPF needs of the machine beside namespaces: cgroups of our own to attach to, and a bpffs of our own to pin in.

Gone when the run ends; what a killed run left is taken away by the next one. Never the machine's own cgroup or bpffs.
"""

import atexit
import os
import subprocess
import tempfile
from functools import cache
from itertools import count

from cni_plugin.backends.common import Placement
from cni_plugin.kernel import cgroup

PREFIX = "mesh-redirect-lab-"
_numbers = count()


class Cgroup:
    """A new cgroup of version 2, empty; None of it where there is no such hierarchy."""

    def __init__(self) -> None:
        _sweep()
        self.path = f"{cgroup.mount()}/{PREFIX}{os.getpid()}-{next(_numbers)}"
        os.mkdir(self.path)

    def join(self, pid: int) -> None:
        """Move a process in. Its sockets of before stay where they were made."""
        with open(f"{self.path}/cgroup.procs", "w") as file:
            file.write(str(pid))

    def close(self) -> None:
        """Remove it; its processes have ended."""
        os.rmdir(self.path)


@cache
def bpffs() -> str:
    """Return where this run's bpffs is mounted."""
    _sweep()
    path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    atexit.register(_unmount, path)
    return path


def placement(where: Cgroup) -> Placement:
    """Return what the backend is told."""
    return Placement(bpffs=bpffs(), cgroup=where.path)


def _unmount(path: str) -> None:
    subprocess.run(["umount", "--lazy", path], check=False)
    os.rmdir(path)


@cache
def _sweep() -> None:
    """Take away what runs left that were killed."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounted = [line.split()[4] for line in file if f"/{PREFIX}" in line]
    for path in mounted:
        if _is_orphan(os.path.basename(path)):
            _unmount(path)
    root = cgroup.mount()
    for name in os.listdir(root) if root else ():
        if _is_orphan(name):
            for directory, _, _ in os.walk(f"{root}/{name}", topdown=False):
                os.rmdir(directory)


def _is_orphan(name: str) -> bool:
    pid = name.removeprefix(PREFIX).partition("-")[0]
    return name.startswith(PREFIX) and not os.path.exists(f"/proc/{pid}")
