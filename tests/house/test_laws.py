"""The house laws that can be read from the source: layers, names, paths, lengths."""

import ast
import os
import re
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROOMS = (".ci", "bpf", "cni_plugin", "docs", "install", "tests")
CODE = (".py", ".c", ".h")

# docs/ARCHITECTURE.md, "Rooms and layers": a file imports from rows above its own, or from its own row.
LAYERS = (
    ("cni_plugin.model",),
    ("cni_plugin.mesh", "cni_plugin.config"),
    ("cni_plugin.kernel",),
    ("cni_plugin.backends",),
    ("cni_plugin.verbs",),
    ("cni_plugin.plugin", "cni_plugin.cli", "cni_plugin.agent", "install"),
)
MESHES = re.compile(r"(?<![a-z])(istio|linkerd|kuma|consul|fsm|osm)(?![a-z])", re.IGNORECASE)
# A home directory, or a place somebody's checkout was: never where a user's files are.
SOMEBODYS = re.compile(r"(?<![\w.])/(?:work|home/\w+|Users/\w+|root/\.\w+|var/tmp/\w+|tmp/\w+)/")
LENGTH = 300
REASON = re.compile(r"\b(Long|lines)\b[^.]*\bbecause\b")


def files(*rooms: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the source files of these rooms, relative to the root, without what a build left there."""
    found = []
    for room in rooms:
        for directory, inner, names in os.walk(os.path.join(ROOT, room)):
            inner[:] = [name for name in inner if name != "__pycache__"]
            found += [os.path.join(directory, name) for name in names if name.endswith(suffixes)]
    return sorted(os.path.relpath(path, ROOT) for path in found)


def text(path: str) -> str:
    """Return the file's text."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def row(module: str) -> int | None:
    """Return the layer of a module of ours, counted from the values; None for everybody else's."""
    for index, rooms in enumerate(LAYERS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return index
    return None


def imports(path: str) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import in the file, those inside functions and for types included."""
    package = path.removesuffix(".py").replace("/", ".").split(".")
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: -node.level] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            # `from cni_plugin import verbs` names a module only together with what it imports.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


OURS = files("cni_plugin", "install", suffixes=(".py",))


@pytest.mark.parametrize("path", OURS)
def test_imports_point_up(path: str) -> None:
    """Red: a lower layer knows a higher one, and can no longer be read or tested by itself."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    own = row(module)
    if own is None:
        assert module == "cni_plugin", f"{path} is in no layer of LAYERS"
        own = -1
    wrong = [
        f"{path}:{line} imports {name}" for line, name in imports(path) if (row(name) or 0) > max(own, 0)
    ]
    assert not wrong


def test_no_mesh_names_in_code() -> None:
    """Red: a mesh is a special case in code, instead of a row in its dialect."""
    named = []
    for path in files("cni_plugin", "bpf", suffixes=CODE):
        for number, line in enumerate(text(path).splitlines(), 1):
            if found := MESHES.search(line):
                named.append(f"{path}:{number}: {found[0]}")
    assert not named


def test_no_paths_of_somebodys_machine() -> None:
    """Red: the repository works only where it was written."""
    # In a work tree .git is a file, and says where the repository is.
    top = [name for name in os.listdir(ROOT) if name != ".git" and os.path.isfile(os.path.join(ROOT, name))]
    suffixes = (*CODE, ".toml", ".md", ".txt", "run", "bootstrap", "packages")
    leaked = []
    for path in [*top, *files(*ROOMS, suffixes=suffixes)]:
        for number, line in enumerate(text(path).splitlines(), 1):
            if found := SOMEBODYS.search(line):
                leaked.append(f"{path}:{number}: {found[0]}")
    assert not leaked


@pytest.mark.parametrize("path", files("cni_plugin", "bpf", "install", "tests", suffixes=CODE))
def test_a_long_file_says_why(path: str) -> None:
    """Red: a file grew past what one reads in one go, and nobody decided that it should."""
    source = text(path)
    if len(source.splitlines()) > LENGTH:
        head = (ast.get_docstring(ast.parse(source)) or "") if path.endswith(".py") else source[:2000]
        assert REASON.search(head), f"{path} has more than {LENGTH} lines and no sentence 'Long because ...'"


@pytest.mark.parametrize("path", [path for path in OURS if text(path).strip()])
def test_a_module_says_what_it_is(path: str) -> None:
    """Red: a reader has to guess what a file is for."""
    assert ast.get_docstring(ast.parse(text(path))), f"{path} has no docstring"


def test_the_laws_can_fail() -> None:
    """Red: the walks above see nothing, and every law holds of nothing."""
    assert row("cni_plugin.verbs") == 4
    assert row("json") is None
    assert ("cni_plugin.model.value.Value") in [name for _, name in imports("cni_plugin/model/decision.py")]
    assert MESHES.search("the Istio proxy")
    assert not MESHES.search("cosmos")
    assert SOMEBODYS.search("see " + "/home/" + "ann/mesh")
    assert len(OURS) > 10
