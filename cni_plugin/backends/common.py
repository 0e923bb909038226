"""What backends share: the answer "not supported", their place, each row of the contract in a few words.

Not the rules themselves: `rules` makes those.
"""

from cni_plugin.model.redirection import Redirection
from cni_plugin.model.value import Value

# What is removed where no record says what was added: routes and addresses of the defaults.
NO_RECORD = Redirection(inbound="tproxy")


class Placement(Value):
    """Where eBPF programs are pinned, and what tells the cgroup they are attached to."""

    bpffs: str = "/sys/fs/bpf"
    cgroup_root: str = ""  # "": where cgroup version 2 is mounted
    pod_uid: str = ""  # the pod's own cgroup, if there is one
    cgroup: str = ""  # else this one, else the root: a policy is for one netns wherever its programs run


class Unsupported(Exception):
    """This kernel or host cannot do it with this backend, and says why; nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InNamespace:
    """A backend that leaves nothing outside the network namespace."""

    def forget(self, cookie: int) -> None:
        """Do nothing: what was made is gone with the namespace."""


# Comments of rules in both backends; letters, digits, blanks and hyphens only, as both syntaxes allow.
WHY = {
    "I1": "excluded interface",
    "I2": "excluded source",
    "I3": "excluded or tunnel port",
    "I4": "to the proxy",
    "I5": "not captured inbound",
    "O1": "excluded interface",
    "O2": "excluded port",
    "O3": "passthrough source",
    "O4": "proxy calls its own pod",
    "O4-O5": "owner is the proxy",
    "O5": "owner is not captured",
    "O6": "captured DNS",
    "O6-O11": "owner is captured",
    "O7": "stays on loopback",
    "O8": "excluded destination",
    "O9": "included port",
    "O10": "included destination",
    "O11": "not captured outbound",
    "udp443": "QUIC refused",
    "drop_invalid": "invalid state",
    "tproxy": "transparent connection",
    "clone": "tells a client at once that the proxy does not listen",
    "family": "is not redirected",
}
