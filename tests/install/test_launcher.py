"""The launcher: it starts anywhere, writes nothing but itself, and refuses what a #! line cannot say."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from install.launcher import LauncherError, script, write


def test_it_answers_from_anywhere_with_an_empty_environment(tmp_path: Path) -> None:
    """Red: a runtime, which has neither our directory nor our environment, cannot start the plugin."""
    program = write(str(tmp_path / "bin"))
    done = subprocess.run(
        [program],
        cwd="/",
        env={"CNI_COMMAND": "VERSION"},
        input="{}",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_written_again_it_replaces_itself_in_one_step(tmp_path: Path) -> None:
    """Red: a runtime may start half a launcher, or finds rubbish beside it."""
    first = os.stat(write(str(tmp_path))).st_ino
    second = os.stat(write(str(tmp_path))).st_ino
    assert first != second
    assert os.listdir(tmp_path) == ["mesh-redirect"]


@pytest.mark.parametrize("python", ["/opt/my python/bin/python3", "/opt/tab\tbed/python3", "/" + "p" * 120])
def test_an_interpreter_that_a_shebang_cannot_name_is_refused(python: str) -> None:
    """Red: the launcher is written, and every pod fails with "no such file or directory"."""
    with pytest.raises(LauncherError):
        script(python, "/srv/mesh-redirect", "/srv/packages")


def test_odd_characters_in_our_own_path_are_harmless() -> None:
    """Red: a checkout below a directory with a quote or a blank in its name cannot run."""
    text = script("/usr/bin/python3", '/srv/it\'s "here"', "/srv/packages")
    compile(text, "launcher", "exec")
    assert repr('/srv/it\'s "here"') in text
