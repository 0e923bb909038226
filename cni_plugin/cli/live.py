"""`mesh-redirect explain --live`: what the kernel holds of an attachment, and which rows have decided so far.

Reads in the attachment's netns; changes nothing, and is no CHECK.
"""

import os

from cni_plugin import backends
from cni_plugin.backends import sight
from cni_plugin.backends.common import WHY, Placement, Unsupported
from cni_plugin.kernel import netns
from cni_plugin.model.errors import CHECK_FAILED, INVALID_ENVIRONMENT, NETNS_FAILED, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def allowed(attachment: str) -> None:
    """Raise `CniError` unless somebody who may look asks about an attachment."""
    if not attachment:
        raise CniError(INVALID_ENVIRONMENT, "--live: is about an attachment, so it needs --attachment")
    if os.geteuid() != 0:
        raise CniError(INVALID_ENVIRONMENT, "--live: only root can enter a sandbox and read its counters")


def seen(record: "dict[str, Any]", state_dir: str, bpffs: str) -> "dict[str, Any]":
    """Return hits by row, and for ebpf policy and links. Raises `CniError`, `KeyError` for a bad record."""
    name = record.get("backend")
    if not name:
        raise CniError(CHECK_FAILED, f"--live: nothing of this pod is redirected: {record['reason']}")
    path, cookie = record["netns"], record["netnsCookie"]
    try:
        with netns.entered(path):
            if netns.cookie() != cookie:
                message = f"--live: {path} is not the network namespace that ADD redirected: that one is gone"
                raise CniError(CHECK_FAILED, message)
            return _here(name, state_dir, bpffs)
    except netns.EnterFailed as error:
        raise CniError(NETNS_FAILED, f"--live: {path} cannot be entered: {error.strerror}") from None
    except (OSError, Unsupported) as error:
        raise CniError(CHECK_FAILED, f"--live: {name} cannot be read: {error}") from None


def _here(name: str, state_dir: str, bpffs: str) -> "dict[str, Any]":
    found: dict[str, Any] = {}
    if name == "ebpf":
        told = sight.sight(bpffs)
        if told is None:
            raise CniError(CHECK_FAILED, f"--live: no policy of this sandbox is pinned in {bpffs}")
        found |= told
    hits = backends.load(name, state_dir, Placement(bpffs=bpffs)).counters()
    found["hits"] = [{"row": row, "what": WHY[row], "hits": count} for row, count in hits.items()]
    return found
