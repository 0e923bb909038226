"""A throw-away network namespace, held by a worker process and driven over a socket.

Not a topology: a namespace knows nothing of its neighbours.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.ground import Cgroup

WORKER = Path(__file__).with_name("worker.py")
# A child user namespace's ids 0..65535 are these on the machine; any unused range does.
USERNS_FIRST = 1_000_000
USERNS_COUNT = 65_536


class Namespace:
    """A new netns; with `user`, one that belongs to a new user namespace. Gone when closed, or when we die."""

    def __init__(self, user: bool = False, cgroup: Cgroup | None = None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-IS", str(WORKER), str(theirs.fileno()), *(["user"] if user else [])]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        if cgroup:
            # Before it makes a socket: a socket belongs to the cgroup it was made in.
            cgroup.join(self.process.pid)
        self.user = user
        self.channel = ours
        self.stream = ours.makefile("rw", encoding="utf-8")
        self.started = False

    @property
    def pid(self) -> int:
        """The worker, a process in the namespace."""
        self.wait_until_started()
        return self.process.pid

    @property
    def path(self) -> str:
        """The namespace as CNI_NETNS would name it."""
        return f"/proc/{self.pid}/ns/net"

    def wait_until_started(self) -> None:
        """Let several namespaces start at once: the first use of each waits."""
        if self.started:
            return
        if self.user:
            self._expect("map me")
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{self.process.pid}/{kind}").write_text(f"0 {USERNS_FIRST} {USERNS_COUNT}\n")
            self.stream.write("mapped\n")
            self.stream.flush()
        self._expect("ready")
        self.started = True

    def _expect(self, word: str) -> None:
        line = self.stream.readline().strip()
        if line != word:
            raise RuntimeError(f"the lab's worker said {line!r} instead of {word!r}")

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the worker do something; its exception becomes ours."""
        self.wait_until_started()
        self.stream.write(json.dumps({"do": do, **arguments}) + "\n")
        self.stream.flush()
        line = self.stream.readline()
        answer = json.loads(line) if line else {"error": "the lab's worker is gone"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def run(self, *command: str, text: str = "") -> str:
        """Run a tool of the machine in the namespace and return what it prints; raise when it fails."""
        enter = ["nsenter", f"--net={self.path}"]
        done = subprocess.run([*enter, *command], input=text, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def close(self) -> None:
        """End the worker, and the namespace with it."""
        self.stream.close()
        self.channel.close()
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def identity(path: str) -> int:
    """Return the inode of a namespace, its identity."""
    return os.stat(path).st_ino
