"""Build hook: a wheel carries what a node should not have to compile, the dialects and the eBPF programs.

Parsing TOML costs the plugin 6 ms an ADD, and a node has no clang.
Not used at run time, and not imported by anything but hatchling.
"""

import os
import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is there only in a build
    """Compile before hatchling collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile both into the package; `version` and `build_data` stay as they are."""
        del version, build_data
        # The build runs in an environment of its own, where this tree is not importable yet.
        sys.path.insert(0, self.root)
        from cni_plugin.mesh.compile import compile_dialects  # noqa: PLC0415 - needs the line above

        compile_dialects(os.path.join(self.root, "cni_plugin", "mesh", "dialects"))
        subprocess.run(["make", "--silent", "objects"], cwd=self.root, check=True)
