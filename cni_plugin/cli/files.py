"""Files a person names: a plugin object, or a conflist that our plugin object is in.

Not the check of what they say: `config.netconf` and `config.schema` do that.
"""

import sys

from cni_plugin.cli import remarks
from cni_plugin.config import netconf
from cni_plugin.model.errors import INVALID_NETCONF, CniError, bad_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TYPE = "mesh-redirect"


def contents(path: str) -> bytes:
    """Return the bytes of a file, or of stdin for "-". Raises `OSError`."""
    if path == "-":
        return sys.stdin.buffer.read()
    with open(path, "rb") as file:
        return file.read()


def json_object(path: str) -> "dict[str, Any]":
    """Return the JSON object in a file. Raises `CniError` 6 or 7 naming the file."""
    try:
        return netconf.load(contents(path))
    except CniError as error:
        raise CniError(error.code, f"{path}: {error.msg.removeprefix('netconf: ')}") from None


def plugin_object(path: str) -> "tuple[dict[str, Any], list[str]]":
    """Return our plugin object as the runtime would send it, and remarks about the chain it is in.

    The conflist's cniVersion and name are in it. A plugin object alone needs neither; it gets the newest
    version and the name "explain". Raises `CniError` 6 or 7 for a file without an object of ours.
    """
    document = json_object(path)
    if "plugins" in document:
        plugins = document["plugins"]
        if not isinstance(plugins, list) or not all(isinstance(plugin, dict) for plugin in plugins):
            raise bad_field(f"{path}: plugins", plugins, "a list of objects")
        ours = [plugin for plugin in plugins if plugin.get("type") == TYPE]
        if not ours:
            types = ", ".join(str(plugin.get("type")) for plugin in plugins) or "none"
            raise CniError(
                INVALID_NETCONF, f"{path}: no plugin of type {TYPE} in this conflist; its types: {types}"
            )
        inherited = {key: document[key] for key in ("cniVersion", "name") if key in document}
        said = remarks.of_chain([plugin.get("type") for plugin in plugins], TYPE)
        return {**ours[0], **inherited}, said
    if document.get("type", TYPE) != TYPE:
        raise bad_field(f"{path}: type", document["type"], f'"{TYPE}", or a conflist with "plugins"')
    return {"cniVersion": netconf.VERSIONS[-1], "name": "explain", **document}, []
