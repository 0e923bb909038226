"""The executable a runtime would start, as a person starts it."""

import subprocess

import pytest

from install import launcher


@pytest.fixture(scope="package")
def command(tmp_path_factory):
    """Return a function that runs the executable with these words, without CNI_COMMAND."""
    path = launcher.write(str(tmp_path_factory.mktemp("bin")))

    def run(*words, stdin=""):
        return subprocess.run(
            [path, *words], input=stdin, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
        )

    return run
