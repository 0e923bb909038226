"""The Result between plugins: prevResult in the version the caller speaks, and the pod's addresses in it.

Not a checker: `config.netconf` has seen to it that ips and interfaces are of the spec's types.
Formats 0.3.0, 0.3.1 and 0.4.0 are one, and so are 1.0.0 and 1.1.0 but for optional keys. The two
differ in `ips[].version`, which 1.0.0 dropped (CNI pkg/types/040 and 100). Keys that no version
knows are another plugin's, and stay.
"""

from cni_plugin.model.parse import interface_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NO_ADDRESS_VERSION = ("1.0.0", "1.1.0")


def convert(prev_result: "dict[str, Any] | None", version: str) -> "dict[str, Any]":
    """Return `prev_result` as a Result of cniVersion `version`; the least one if there is none.

    A prevResult that names no version is of the netconf's, that is `version` (libcni before 1.0.0
    printed none).
    """
    if prev_result is None:
        return {"cniVersion": version, "ips": []}
    spoken = prev_result.get("cniVersion", version)
    found = {**prev_result, "cniVersion": version}
    if found.get("ips"):
        found["ips"] = [_ip(item, spoken, version) for item in found["ips"]]
    return found


def _ip(item: "dict[str, Any]", spoken: str, version: str) -> "dict[str, Any]":
    if version not in _NO_ADDRESS_VERSION:
        return {**item, "version": _family(item)}
    if spoken in _NO_ADDRESS_VERSION:
        return item
    return {key: value for key, value in item.items() if key != "version"}


def _family(item: "dict[str, Any]") -> str:
    return "4" if len(interface_address("ips.address", item["address"])) == 4 else "6"


def addresses(prev_result: "dict[str, Any] | None") -> list[bytes]:
    """Return the pod's addresses, packed, in prevResult's order, each once.

    Those of an interface outside the sandbox are left out. Where that leaves none, all are taken:
    some plugins list the host's end of a link only, and a family we do not see would bypass the mesh.
    """
    if prev_result is None:
        return []
    interfaces = prev_result.get("interfaces") or []
    ips = prev_result.get("ips") or []
    inside = [item for item in ips if _in_sandbox(item.get("interface"), interfaces)]
    found = [interface_address("ips.address", item["address"]) for item in inside or ips]
    return list(dict.fromkeys(found))


def _in_sandbox(index: int | None, interfaces: "list[dict[str, Any]]") -> bool:
    return index is None or index >= len(interfaces) or bool(interfaces[index].get("sandbox"))
