"""`mesh-redirect config check` and `config schema`: the netconf before a runtime reads it.

Not a second set of rules: `config.schema` describes the netconf, `mesh.dialect` knows the meshes.
"""

import argparse
import json
import sys

from pydantic import ValidationError

from cni_plugin.cli import files
from cni_plugin.config import netconf
from cni_plugin.config import schema as described
from cni_plugin.mesh import dialect
from cni_plugin.model.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check(options: argparse.Namespace) -> int:
    """Print every fault of a netconf or conflist, or that there is none; return 1 or 0.

    Raises `CniError` or `OSError` for a file that holds no netconf at all.
    """
    document = files.plugin_object(options.file)
    faults = _faults(document)
    for line in faults or ["valid"]:
        sys.stdout.write(f"{options.file}: {line}\n")
    return 1 if faults else 0


def _faults(document: "dict[str, Any]") -> list[str]:
    try:
        described.validate(document)
    except ValidationError as error:
        return [_fault(fault) for fault in error.errors()]
    try:
        # What the schema does not know: which meshes there are.
        dialect.load(netconf.netconf(document).mesh)
    except CniError as error:
        return [error.msg]
    return []


def _fault(fault: "Any") -> str:
    where = ".".join(str(step) for step in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return message if message.startswith(where) else f"{where}: {message}"


def schema(_: argparse.Namespace) -> int:
    """Print the JSON Schema of our object in a conflist."""
    sys.stdout.write(json.dumps(described.json_schema(), indent=2) + "\n")
    return 0
