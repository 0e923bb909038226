"""The dialect format: compiled once, refused when it is none, read the same from TOML and JSON."""

import json
import os
import subprocess
import sys

import pytest

from cni_plugin.mesh import compile as compiler
from cni_plugin.mesh import dialect

HEAD = 'needs = []\nreason = "configured"\ndetail = "x"\n'


def test_compiled_dialects_are_read_as_their_toml(tmp_path, monkeypatch):
    """Red: an installed plugin decides differently from a source tree."""
    for mesh in dialect.meshes():
        with open(os.path.join(dialect.DIRECTORY, mesh + ".toml"), "rb") as file:
            (tmp_path / (mesh + ".toml")).write_bytes(file.read())
    from_toml = {mesh: compiler.compiled(str(tmp_path / (mesh + ".toml"))) for mesh in dialect.meshes()}
    written = compiler.compile_dialects(str(tmp_path))
    assert sorted(written) == sorted(str(tmp_path / (mesh + ".json")) for mesh in from_toml)
    for path in tmp_path.glob("*.toml"):
        path.unlink()
    monkeypatch.setattr(dialect, "DIRECTORY", str(tmp_path))
    assert {mesh: dialect.load(mesh) for mesh in dialect.meshes()} == from_toml


def test_a_toml_changed_since_is_not_hidden_by_the_compiled_file(tmp_path, monkeypatch):
    """Red: who edits a dialect in a source tree goes on with the old one."""
    source = tmp_path / "generic.toml"
    source.write_text(HEAD)
    compiler.compile_dialects(str(tmp_path))
    source.write_text(HEAD.replace("configured", "changed"))
    os.utime(tmp_path / "generic.json", ns=(1, 1))
    monkeypatch.setattr(dialect, "DIRECTORY", str(tmp_path))
    assert dialect.load("generic")["reason"] == "changed"


def test_compiled_dialect_costs_no_slow_import(tmp_path):
    """Red: every ADD pays for tomllib, re or json."""
    for mesh in dialect.meshes():
        with open(os.path.join(dialect.DIRECTORY, mesh + ".toml"), "rb") as file:
            (tmp_path / (mesh + ".toml")).write_bytes(file.read())
    compiler.compile_dialects(str(tmp_path))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cni_plugin.mesh import dialect\n"
        "dialect.DIRECTORY = sys.argv[2]\n"
        "for mesh in dialect.meshes(): dialect.load(mesh)\n"
        "print(sorted({'tomllib', 're', 'json', 'typing', 'socket', 'enum'} & set(sys.modules)))\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(dialect.__file__))))
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root, str(tmp_path)], capture_output=True, text=True
    )
    assert ran.stdout == "[]\n", ran.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("needs = []\n", "reason and detail are required"),
        (HEAD + "[colours]\n", "unknown table colours"),
        (HEAD.replace("[]", '["luck"]'), "needs is not among"),
        (HEAD + "[defaults]\ncolour = 1\n", "'colour' is no field"),
        (HEAD + "[defaults]\ninboundPort = 0\n", "inboundPort"),
        (HEAD + '[always]\nexcludeInboundPorts = "x"\n', "excludeInboundPorts"),
        (HEAD + '[[pass]]\nfacts = []\nwhen = "absent"\n', "are required"),
        (HEAD + '[[pass]]\nfacts = ["x:y"]\nwhen = "absent"\nreason = "a"\ndetail = "b"\n', "SOURCE:NAME"),
        (HEAD + '[[pass]]\nfacts = []\nwhen = "later"\nreason = "a"\ndetail = "b"\n', "when is not among"),
        (HEAD + '[[pass]]\nfacts = []\nwhen = "lists"\nreason = "a"\ndetail = "b"\n', "value is for"),
        (HEAD + '[[set]]\nfacts = []\nreader = "ports"\nmerge = "replace"\n', "field is for"),
        (HEAD + '[[set]]\nfacts = []\nreader = "magic"\nmerge = "replace"\nfield = "dns"\n', "closed set"),
        (
            HEAD + '[[set]]\nfacts = []\nreader = "ports"\nmerge = "shuffle"\nfield = "dns"\n',
            "merge is not among",
        ),
        (
            HEAD + '[[set]]\nfacts = []\nreader = "choice"\nmerge = "replace"\nfield = "inbound"\n',
            "choices is for",
        ),
        (
            HEAD + '[[set]]\nfacts = []\nreader = "choice"\nmerge = "replace"\nfield = "inbound"\n'
            'choices = { A = "sideways" }\n',
            "'sideways'",
        ),
        (
            HEAD + '[[set]]\nfacts = []\nreader = "ports"\nmerge = "replace"\nfield = "dns"\nwho = 1\n',
            "unknown key who",
        ),
        (
            HEAD + '[[derive]]\nfield = "dns"\nvalue = "all"\nfrom = "dns"\nwhen = "noon"\n',
            "no known derivation",
        ),
        (HEAD + '[[unknown]]\ntext = "x"\nwhen = "noon"\n', "dual-stack"),
    ],
)
def test_a_dialect_that_is_none_is_refused_when_it_is_compiled(tmp_path, text, complaint):
    """Red: a typo in a dialect is found by a pod in production."""
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.toml") as caught:
        compiler.compiled(str(path))
    assert complaint in str(caught.value)


def test_compiled_file_is_plain_json(tmp_path):
    """Red: the compiled dialect needs more than the C scanner to be read."""
    (tmp_path / "generic.toml").write_text(HEAD)
    [path] = compiler.compile_dialects(str(tmp_path))
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["reason"] == "configured"
    assert sorted(os.listdir(tmp_path)) == ["generic.json", "generic.toml"]
