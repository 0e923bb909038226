"""Write an executable a runtime can start: the plugin from this source tree, with this Python.

For development, the tests and the demo (`python -m install.launcher DIR`). Not an installer: the
launcher needs this tree and this Python to stay where they are.
"""

import os
import sys
import sysconfig

from cni_plugin.mesh.compile import compile_dialects

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "mesh-redirect"
# The kernel reads 256 bytes of a script (BINPRM_BUF_SIZE) and before 5.1 only 128, newline included;
# it splits the interpreter's path at the first blank.
SHEBANG_BYTES = 127

SCRIPT = """\
#!{python} -IS
import sys

sys.path.insert(0, {root!r})
sys.path.append({packages!r})

from cni_plugin.plugin import main

sys.exit(main())
"""


class LauncherError(Exception):
    """This Python or this tree cannot be put into a launcher; the message says why and what to do."""


def script(python: str, root: str, packages: str) -> str:
    """Return the launcher's text. Raises `LauncherError` for an interpreter a shebang cannot name."""
    if any(blank in python for blank in " \t\n"):
        raise LauncherError(
            f"{python!r} has a blank in its path, which a #! line cannot name: use another Python"
        )
    line = f"#!{python} -IS"
    if len(os.fsencode(line)) + 1 > SHEBANG_BYTES:
        raise LauncherError(
            f"{line!r} is longer than the {SHEBANG_BYTES} bytes every kernel reads of a #! line: "
            "use a Python with a shorter path"
        )
    return SCRIPT.format(python=python, root=root, packages=packages)


def write(directory: str) -> str:
    """Write DIRECTORY/mesh-redirect, replacing what is there in one step, and return its path."""
    # The interpreter behind a virtual environment: it starts faster, and packages are named below.
    text = script(os.path.realpath(sys.executable), ROOT, sysconfig.get_paths()["platlib"])
    compile_dialects(os.path.join(ROOT, "cni_plugin", "mesh", "dialects"))
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, NAME)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o755)
    os.rename(temporary, path)
    return path


def main() -> int:
    """Print the path of the launcher written into DIR; exit 2, with the reason, if it cannot be."""
    if len(sys.argv) != 2:
        print("usage: python -m install.launcher DIR", file=sys.stderr)
        return 2
    try:
        print(write(sys.argv[1]))
    except LauncherError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
