"""`mesh-redirect config check` and `config schema`: the netconf before a runtime reads it.

Not a second set of rules: `config.schema` describes the netconf, `mesh.dialect` knows the meshes.
"""

import argparse
import json
import sys

from pydantic import ValidationError

from cni_plugin.cli import files, remarks
from cni_plugin.config import fields, netconf
from cni_plugin.config import schema as described
from cni_plugin.mesh import dialect, effective, facts
from cni_plugin.model.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check(options: argparse.Namespace) -> int:
    """Print every fault of a netconf or conflist, or that there is none; return 1 or 0.

    Raises `CniError` or `OSError` for a file that holds no netconf at all.
    """
    document, said = files.plugin_object(options.file)
    faults = _faults(document)
    if not faults:
        said += remarks.of_object(document)
    for line in faults + [f"warning: {remark}" for remark in said] + ([] if faults else ["valid"]):
        sys.stdout.write(f"{options.file}: {line}\n")
    return 1 if faults else 0


def _faults(document: "dict[str, Any]") -> list[str]:
    try:
        described.validate(document)
    except ValidationError as error:
        # A field that may be of several forms has a fault for each: one sentence says it.
        return list(dict.fromkeys(_fault(document, fault) for fault in error.errors()))
    try:
        # What the schema does not know: which meshes there are, and what makes no sense together.
        conf = netconf.netconf(document)
        described_by = dialect.load(conf.mesh)
        if conf.redirection:
            effective.build(described_by, facts.gather(conf, {}), conf.redirection, [])
    except CniError as error:
        return [error.msg]
    return []


def _fault(document: "dict[str, Any]", fault: "Any") -> str:
    """Return what the plugin itself would say of the field in which the schema found a fault."""
    try:
        _read(document, *fault["loc"])
    except CniError as error:
        return error.msg
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def _read(document: "dict[str, Any]", key: str, *inner: "Any") -> None:
    """Read one field as the plugin does."""
    if key == "redirection" and inner and isinstance(document[key], dict):
        fields.redirection_fields(key, {inner[0]: document[key][inner[0]]})
    elif key in netconf.OPTIONS:
        netconf.OPTIONS[key][1](key, document[key])
    elif key == "cniVersion":
        netconf.version(document)
    else:
        netconf.network_name(key, document.get(key))


def schema(_: argparse.Namespace) -> int:
    """Print the JSON Schema of our object in a conflist."""
    sys.stdout.write(json.dumps(described.json_schema(), indent=2) + "\n")
    return 0
