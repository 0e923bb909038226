"""`mesh-redirect config`, `version` and the command line's own errors."""

import json

import pytest

from cni_plugin import __version__


def test_version(command):
    """Red: nobody can tell which version a node has."""
    assert command("version").stdout == f"mesh-redirect {__version__}\n"


def test_valid_netconf_and_conflist(command, tmp_path):
    """Red: a good file is refused before it is installed."""
    ours = {
        "type": "mesh-redirect",
        "mesh": "istio",
        "capabilities": {"io.kubernetes.cri.pod-annotations": True},
    }
    path = tmp_path / "net.conflist"
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [ours]}))
    ran = command("config", "check", str(path))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{path}: valid\n", "")
    assert command("config", "check", "-", stdin=json.dumps(ours)).stdout == "-: valid\n"


def test_every_fault_is_told(command):
    """Red: faults are found one installation at a time, or without their names."""
    redirection = {"outboundPort": 0, "excludeOutboundCidrs": ["10.0.0.0/33"], "colour": "red"}
    ran = command(
        "config", "check", "-", stdin=json.dumps({"agent": "sometimes", "redirection": redirection})
    )
    assert ran.returncode == 1
    lines = ran.stdout.splitlines()
    for name in ("agent", "outboundPort", "excludeOutboundCidrs", "colour"):
        assert any(name in line for line in lines)
    assert all(line.startswith("-: ") for line in lines)


def test_unknown_mesh_is_a_fault(command):
    """Red: a typo in "mesh" is found by the first pod."""
    ran = command("config", "check", "-", stdin='{"mesh": "nosuch"}')
    assert ran.returncode == 1
    assert "'nosuch'" in ran.stdout


def test_what_is_no_netconf_is_exit_code_2(command):
    """Red: scripts cannot tell a wrong netconf from a wrong file."""
    for arguments, stdin in ((["/nonexistent"], ""), (["-"], "hello"), (["-"], "[]")):
        ran = command("config", "check", *arguments, stdin=stdin)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_schema_is_json_schema_of_the_netconf(command):
    """Red: editors and installers that ask for the schema get something else."""
    found = json.loads(command("config", "schema").stdout)
    assert {"mesh", "redirection", "backends"} <= set(found["properties"])


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["explain"], ["config"], ["config", "check"], ["explain", "--x"]]
)
def test_unknown_words_are_exit_code_2_with_usage(command, arguments):
    """Red: a mistyped command does nothing and looks successful."""
    ran = command(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "usage: mesh-redirect" in ran.stderr


def test_help_names_every_command(command):
    """Red: a command exists that --help does not tell of."""
    text = command("--help").stdout
    for word in ("explain", "config", "version"):
        assert word in text
