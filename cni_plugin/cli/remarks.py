"""Remarks: what a runtime would take without a word, and what is hardly what its author meant.

Not faults: those are what ADD refuses, and `config.netconf` names them.
"""

from cni_plugin.config import fields, netconf
from cni_plugin.mesh import dialect
from cni_plugin.model.errors import near
from cni_plugin.model.request import Netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Keys that runtimes and libcni put beside ours (CNI spec section 1), two of which look like ours.
_OTHERS = ("type", "name", "cniVersion", "capabilities", "args", "ipam", "dns", "ipMasq")


def of_chain(types: "list[Any]", ours: str) -> list[str]:
    """Return what to say of a conflist whose plugins have these types; `ours` is among them."""
    said = []
    if types[0] == ours and len(types) > 1:
        said.append(
            f"{ours} is first in the chain: it gets no prevResult there, so it cannot know the pod's "
            "addresses, and rules of later plugins may go around its own; put it last"
        )
    if types.count(ours) > 1:
        said.append(
            f"{ours} is {types.count(ours)} times in the chain: the last one's redirection stays; "
            "this is about the first"
        )
    return said


def of_object(ours: "dict[str, Any]") -> list[str]:
    """Return what to say of our plugin object, which is valid."""
    said = []
    for key in ours:
        if key in netconf.OPTIONS or key in _OTHERS:
            continue
        if key in fields.FIELDS:
            said.append(f'{key}: ignored here; it belongs in "redirection"')
        elif meant := near(key, netconf.OPTIONS):
            said.append(f"{key}: no such field, ignored; did you mean {meant}?")
    mesh = ours.get("mesh", Netconf.mesh)
    # With a runtimeConfig in it this is what a runtime sends: it has been asked.
    if "annotations" in dialect.load(mesh)["needs"] and not ("runtimeConfig" in ours or _asks(ours)):
        said.append(
            f"mesh {mesh} is decided by pod annotations and the runtime is not asked for them, so ADD "
            f'answers "try again later"; add "capabilities": {{"{netconf.ANNOTATIONS}": true}}'
        )
    return said


def _asks(ours: "dict[str, Any]") -> bool:
    asked = ours.get("capabilities")
    return isinstance(asked, dict) and asked.get(netconf.ANNOTATIONS) is True


def of_annotations(mesh: str, annotations: "dict[str, str]") -> list[str]:
    """Return what to say of annotations that the dialect does not read, but that look like one it reads."""
    rows = dialect.load(mesh)
    known = {
        name
        for kind in ("pass", "set")
        for row in rows[kind]
        for source, name, _ in row["facts"]
        if source == "annotation"
    }
    found = {name: near(name, known) for name in annotations if name not in known}
    return [f"annotation {name} is not read; did you mean {meant}?" for name, meant in found.items() if meant]
