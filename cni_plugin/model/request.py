"""`Request`: one call by the runtime, environment and netconf together, as checked values.

Not a reader of JSON: `config.netconf` is that. The environment is read here.
"""

from cni_plugin.model.errors import INVALID_ENVIRONMENT, CniError, bad_field
from cni_plugin.model.parse import IFNAMSIZ, bool_text
from cni_plugin.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# CNI spec 1.1.0, section 2: what each operation requires of the environment, CNI_COMMAND apart.
# Ours is a little laxer than the reference skeleton, which wants CNI_PATH everywhere.
REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
# The spec has no limit, but "<id>:<ifname>.json" and its temporary name must fit NAME_MAX, 255 bytes.
MAX_CONTAINER_ID = 200
_ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class Netconf(Value):
    """The netconf, defaults filled in. `prev_result` and `cni_args` are JSON as they came.

    `pod_annotations` is None where the runtime gave none, {} where the pod has none.
    `valid_attachments` is None where the runtime did not say, which is not the same as ().
    """

    cni_version: str
    name: str
    mesh: str = "generic"
    backends: tuple[str, ...] = ("nftables", "iptables")
    exclude_namespaces: tuple[str, ...] = ()
    redirection: "dict[str, object]" = {}
    agent: str = "auto"  # auto | require | never
    agent_socket: str = "/run/mesh-redirect/agent.sock"
    agent_namespace: str = "mesh-redirect"
    state_dir: str = "/run/mesh-redirect"
    bpffs: str = "/sys/fs/bpf"
    cgroup_root: str = ""
    cgroup: str = ""
    log_level: str = "info"  # debug | info | warn | error
    log_file: str = "/run/mesh-redirect/plugin.log"
    prev_result: "dict[str, Any] | None" = None
    pod_annotations: "dict[str, str] | None" = None
    cni_args: "dict[str, Any]" = {}
    valid_attachments: tuple[tuple[str, str], ...] | None = None


class Request(Value):
    """What the runtime asks. `netns`, `container_id` and `ifname` are "" where the verb has none."""

    command: str
    netconf: Netconf
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: "dict[str, str]" = {}


def environment(env: "Mapping[str, str]") -> "dict[str, Any]":
    """Return `Request`'s fields other than `netconf`. Raises `CniError` 4 naming every bad variable."""
    command = env.get("CNI_COMMAND", "")
    if command not in REQUIRED:
        raise bad_field("CNI_COMMAND", command, "one of " + ", ".join(REQUIRED), INVALID_ENVIRONMENT)
    missing = [variable for variable in REQUIRED[command] if not env.get(variable)]
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"{command} needs {', '.join(missing)} in the environment")
    for variable in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"):
        # Python keeps bytes that are no UTF-8 as lone surrogates; records and logs cannot hold them.
        if not _is_utf8(env.get(variable, "")):
            raise bad_field(variable, env[variable], "UTF-8", INVALID_ENVIRONMENT)
    fields: dict[str, Any] = {"command": command}
    if "CNI_CONTAINERID" in REQUIRED[command]:
        fields["container_id"] = container_id("CNI_CONTAINERID", env["CNI_CONTAINERID"])
        fields["ifname"] = interface("CNI_IFNAME", env["CNI_IFNAME"])
        fields["netns"] = env.get("CNI_NETNS", "")
        # A DEL that cannot succeed would keep the sandbox for ever, so it forgives what it does not need.
        fields["args"] = cni_args(env.get("CNI_ARGS", ""), forgiving=command == "DEL")
    return fields


def container_id(field: str, value: str) -> str:
    """Return a container id (spec section 2); it becomes part of a file name, so this is a safety rule."""
    if 0 < len(value) <= MAX_CONTAINER_ID and value[0] in _ALNUM and not value.strip(_ALNUM + "_.-"):
        return value
    expected = f"1..{MAX_CONTAINER_ID} letters, digits, _ . and -, beginning with a letter or digit"
    raise bad_field(field, value, expected, INVALID_ENVIRONMENT)


def interface(field: str, value: str) -> str:
    """Return an interface name as the kernel takes it (net/core/dev.c, dev_valid_name)."""
    foul = value in (".", "..") or any(letter in "/:" or letter.isspace() for letter in value)
    if 0 < len(value.encode()) < IFNAMSIZ and not foul:
        return value
    expected = f"1..{IFNAMSIZ - 1} bytes without / : and blanks, and neither . nor .."
    raise bad_field(field, value, expected, INVALID_ENVIRONMENT)


def cni_args(text: str, forgiving: bool = False) -> "dict[str, str]":
    """Return the pairs of CNI_ARGS, "K=V;K=V"; the last of two equal keys counts.

    A pair without "=" or key, or not in UTF-8, is an error 4, unless `forgiving` or IgnoreUnknown is true
    among the pairs (CNI CONVENTIONS.md, "CNI_ARGS"): then it is left out.
    """
    found: dict[str, str] = {}
    malformed: list[str] = []
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if key and equals and _is_utf8(pair):
            found[key] = value
        else:
            malformed.append(pair)
    if malformed and not forgiving and not _ignores_unknown(found):
        expected = 'pairs "KEY=VALUE" with ; between them'
        raise bad_field("CNI_ARGS", malformed[0], expected, INVALID_ENVIRONMENT)
    return found


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ignores_unknown(args: "dict[str, str]") -> bool:
    try:
        return bool_text("IgnoreUnknown", args.get("IgnoreUnknown", "0"))
    except CniError:
        return False
