"""The netconf as the plugin reads it: one small strict reader, because pydantic costs 128 ms to import.

Not the description for people: `config.schema` is that, and a property test holds the two together.
Unknown top-level keys are ignored (runtimes and meta-plugins add their own); unknown keys inside
"redirection" are ours to refuse.
"""

from cni_plugin.config.fields import redirection_fields
from cni_plugin.model import minijson, parse
from cni_plugin.model.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_NETCONF,
    CniError,
    bad_field,
)
from cni_plugin.model.request import Netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
BACKENDS = ("nftables", "iptables", "ebpf")
MAX_BYTES = 16 << 20
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
# All that DEL may depend on. A netconf broken after ADD must not keep a sandbox from being removed.
FOR_DELETE = ("cniVersion", "name", "stateDir", "bpffs", "logLevel", "logFile")

_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
_NETWORK = _LOWER + _LOWER.upper() + _DIGITS
# sockaddr_un.sun_path (linux/un.h) holds 108 bytes with the closing NUL; PATH_MAX is linux/limits.h.
_SUN_PATH, _PATH_MAX = 107, 4095


def read(data: bytes) -> Netconf:
    """Return the netconf in `data`. Raises `CniError` 1, 6 or 7."""
    return netconf(load(data))


def load(data: bytes) -> "dict[str, Any]":
    """Return the JSON object in `data`. Raises `CniError` 6, or 7 for more than 16 MiB."""
    if len(data) > MAX_BYTES:
        raise CniError(INVALID_NETCONF, f"netconf: longer than {MAX_BYTES} bytes, expected at most 16 MiB")
    try:
        document = minijson.loads(data)
    except ValueError as error:
        raise CniError(DECODING_FAILURE, f"netconf: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise bad_field("netconf", document, "a JSON object", DECODING_FAILURE)
    return document


def netconf(document: "dict[str, Any]") -> Netconf:
    """Return the checked netconf of a JSON object. Raises `CniError` 1, 6 or 7."""
    cni_version = version(document)
    fields: dict[str, Any] = {"name": network_name("name", document.get("name"))}
    for key, (field, read_field) in OPTIONS.items():
        if key in document:
            fields[field] = read_field(key, document[key])
    fields.setdefault("log_file", fields.get("state_dir", Netconf.state_dir) + "/plugin.log")
    runtime = _object("runtimeConfig", document.get("runtimeConfig"))
    args = _object("args", document.get("args"))
    prev_result = document.get("prevResult")
    return Netconf(
        cni_version=cni_version,
        prev_result=None if prev_result is None else checked_result("prevResult", prev_result),
        pod_annotations=annotations(f"runtimeConfig[{ANNOTATIONS!r}]", runtime),
        cni_args=_object("args.cni", args.get("cni")),
        valid_attachments=attachments(document),
        **fields,
    )


def _object(field: str, value: object) -> "dict[str, Any]":
    """Return a JSON object; null is Go's way to print a map that nobody made."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_field(field, value, "an object")
    return value


def version(document: "dict[str, Any]") -> str:
    """Return cniVersion. Raises `CniError` 6 if it is no string, 1 if it is not one of ours."""
    found = document.get("cniVersion", "0.1.0")  # spec section 1: without the key it is 0.1.0
    if not isinstance(found, str):
        raise bad_field("cniVersion", found, "a string", DECODING_FAILURE)
    if found not in VERSIONS:
        expected = "one of " + ", ".join(VERSIONS)
        if "cniVersion" not in document:
            expected += " (where it is not written it is 0.1.0)"
        raise bad_field("cniVersion", found, expected, INCOMPATIBLE_VERSION)
    return found


def needs_version(command: str, cni_version: str) -> None:
    """Raise `CniError` 1 if the verb is younger than the netconf's cniVersion."""
    since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command, VERSIONS[0])
    if VERSIONS.index(cni_version) < VERSIONS.index(since):
        raise bad_field("cniVersion", cni_version, f"{since} or later for {command}", INCOMPATIBLE_VERSION)


# --- one field -----------------------------------------------------------------------------------


def network_name(field: str, value: object) -> str:
    """Return the network's name (spec section 1: as a container id)."""
    if isinstance(value, str) and value and value[0] in _NETWORK and not value.strip(_NETWORK + "_.-"):
        return value
    raise bad_field(field, value, "letters, digits, _ . and -, beginning with a letter or digit")


def mesh_name(field: str, value: object) -> str:
    """Return the name of a dialect; whether there is one of that name is `mesh.dialect`'s to say."""
    if isinstance(value, str) and value and value[0] in _LOWER and not value.strip(_LOWER + _DIGITS + "-"):
        return value
    raise bad_field(field, value, "a dialect's name: a-z, 0-9 and -, beginning with a letter")


def backends(field: str, value: object) -> "tuple[str, ...]":
    """Return the backends in order of preference, at least one, each once."""
    if not isinstance(value, list) or not value:
        raise bad_field(field, value, "a list of " + " and ".join(BACKENDS))
    found = [parse.choice(f"{field}[{at}]", item, BACKENDS) for at, item in enumerate(value)]
    return tuple(dict.fromkeys(found))


def namespace(field: str, value: object) -> str:
    """Return a Kubernetes namespace's name (RFC 1123 label)."""
    if isinstance(value, str) and 0 < len(value) <= 63 and not value.strip(_LOWER + _DIGITS + "-"):
        inner = value.strip("-")
        if inner == value:
            return value
    raise bad_field(field, value, "a namespace's name: 1..63 of a-z, 0-9 and -, no - at the ends")


def namespaces(field: str, value: object) -> "tuple[str, ...]":
    """Return a list of namespaces."""
    if not isinstance(value, list):
        raise bad_field(field, value, "a list of namespaces")
    return tuple([namespace(f"{field}[{at}]", item) for at, item in enumerate(value)])


def agent(field: str, value: object) -> str:
    """Return whether the agent is asked."""
    return parse.choice(field, value, ("auto", "require", "never"))


def log_level(field: str, value: object) -> str:
    """Return the least level that is logged."""
    return parse.choice(field, value, ("debug", "info", "warn", "error"))


def path(field: str, value: object) -> str:
    """Return an absolute path."""
    return _path(field, value, _PATH_MAX)


def socket_path(field: str, value: object) -> str:
    """Return an absolute path that a unix socket's address can hold."""
    return _path(field, value, _SUN_PATH)


def _path(field: str, value: object, limit: int) -> str:
    # Printable comes first: such a string has no lone surrogate, so it can be encoded.
    if isinstance(value, str) and value[:1] == "/" and value.isprintable() and len(value.encode()) <= limit:
        return value
    raise bad_field(field, value, f"an absolute path of printable characters, at most {limit} bytes")


# What people write: name in the netconf, field of `Netconf`, reader. `name` and `cniVersion` come from
# the conflist around it; defaults are `Netconf`'s own.
OPTIONS: "dict[str, tuple[str, Callable[[str, object], object]]]" = {
    "mesh": ("mesh", mesh_name),
    "backends": ("backends", backends),
    "excludeNamespaces": ("exclude_namespaces", namespaces),
    "redirection": ("redirection", redirection_fields),
    "agent": ("agent", agent),
    "agentSocket": ("agent_socket", socket_path),
    "agentNamespace": ("agent_namespace", namespace),
    "stateDir": ("state_dir", path),
    "bpffs": ("bpffs", path),
    "cgroupRoot": ("cgroup_root", path),
    "cgroup": ("cgroup", path),
    "logLevel": ("log_level", log_level),
    "logFile": ("log_file", path),
}


# --- what the runtime adds -----------------------------------------------------------------------


def annotations(field: str, runtime: "dict[str, Any]") -> "dict[str, str] | None":
    """Return the pod's annotations from runtimeConfig; None if the runtime gave none at all."""
    if ANNOTATIONS not in runtime:
        return None
    found = _object(field, runtime[ANNOTATIONS])
    for key, value in found.items():
        if not isinstance(value, str):
            raise bad_field(f"{field}[{key!r}]", value, "a string")
    return found


def attachments(document: "dict[str, Any]") -> "tuple[tuple[str, str], ...] | None":
    """Return the attachments that GC must keep; None if the runtime did not say.

    libcni prints an empty Go slice as null, and gives the key that the 1.1.0 draft used as well.
    """
    for field in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if field in document:
            value = [] if document[field] is None else document[field]
            if not isinstance(value, list):
                raise bad_field(field, value, "a list of objects")
            return tuple([_attachment(f"{field}[{at}]", item) for at, item in enumerate(value)])
    return None


def _attachment(field: str, item: object) -> "tuple[str, str]":
    if isinstance(item, dict):
        container, ifname = item.get("containerID"), item.get("ifname")
        if isinstance(container, str) and isinstance(ifname, str):
            return container, ifname
    raise bad_field(field, item, 'an object with strings "containerID" and "ifname"')


def checked_result(field: str, value: object) -> "dict[str, Any]":
    """Return a Result as it came, its ips and interfaces being of the spec's types (section 5)."""
    if not isinstance(value, dict):
        raise bad_field(field, value, "an object")
    if value.get("cniVersion", VERSIONS[0]) not in VERSIONS:
        raise bad_field(f"{field}.cniVersion", value["cniVersion"], "one of " + ", ".join(VERSIONS))
    for key, check in (("interfaces", _interface), ("ips", _ip)):
        items = value.get(key)
        if items is None:
            continue
        if not isinstance(items, list):
            raise bad_field(f"{field}.{key}", items, "a list")
        for at, item in enumerate(items):
            if not isinstance(item, dict):
                raise bad_field(f"{field}.{key}[{at}]", item, "an object")
            check(f"{field}.{key}[{at}]", item)
    return value


def _interface(field: str, item: "dict[str, Any]") -> None:
    if not isinstance(item.get("name"), str):
        raise bad_field(f"{field}.name", item.get("name"), "a string")
    if not isinstance(item.get("sandbox"), str | None):
        raise bad_field(f"{field}.sandbox", item["sandbox"], "a string")


def _ip(field: str, item: "dict[str, Any]") -> None:
    parse.interface_address(f"{field}.address", item.get("address"))
    index = item.get("interface")
    if index is not None:
        parse.integer(f"{field}.interface", index, 0, 0x7FFFFFFF)
    if item.get("gateway") not in (None, ""):
        parse.address(f"{field}.gateway", item["gateway"])
