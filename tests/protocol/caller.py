"""One call of the plugin, as a runtime makes it: environment, stdin, and all that comes back."""

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

OWNED = {"proxyUids": [1337], "proxyGids": [1337]}
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=app-1"


@dataclass(frozen=True)
class Answer:
    """What the runtime sees."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def json(self) -> Any:
        """Return stdout, which has to be one JSON value and a newline."""
        return json.loads(self.stdout)

    def error(self) -> dict[str, Any]:
        """Return the error, which has to be the one JSON object on stdout, of the spec's form."""
        assert self.code == 1, self
        assert self.stdout.count(b"\n") == 1, self
        assert self.stdout.endswith(b"}\n"), self
        assert set(self.json) == {"cniVersion", "code", "msg", "details"}, self
        assert "\n" not in self.json["msg"]
        return self.json

    def success(self) -> "Answer":
        """Return this answer, which has to be a success."""
        assert self.code == 0, self
        return self


class Caller:
    """Calls the executable for one attachment."""

    def __init__(self, executable: str, netns: str, state_dir: str) -> None:
        self.executable = executable
        self.state_dir = state_dir
        self.env = {
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": os.path.dirname(executable),
            "PATH": os.environ["PATH"],
        }

    def netconf(self, **more: Any) -> dict[str, Any]:
        """Return a netconf that is sound but for `more`."""
        return {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "mesh-redirect",
            "stateDir": self.state_dir,
        } | more

    def __call__(
        self, command: str, stdin: Any = None, env: dict[str, Any] | None = None, **more: Any
    ) -> Answer:
        """Call with `stdin`: bytes, or what is to be JSON, or nothing for `netconf(**more)`.

        A variable of `env` that is None is left out.
        """
        data = (
            stdin
            if isinstance(stdin, bytes)
            else json.dumps(self.netconf(**more) if stdin is None else stdin).encode()
        )
        given = {**self.env, "CNI_COMMAND": command, **(env or {})}
        given = {name: value for name, value in given.items() if value is not None}
        done = subprocess.run([self.executable], input=data, env=given, capture_output=True, check=False)
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def records(self) -> list[str]:
        """Return the attachments' records by name."""
        directory = os.path.join(self.state_dir, "attachments")
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []
