"""The plugin's import budget: what is in `sys.modules` after every verb is on a short written list."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.ground import Cgroup, bpffs
from tests.lab.need import need
from tests.runtime.node import Netns

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PYTHON = os.path.realpath(sys.executable)

# What the launcher does, and then, before it ends: the names of what has been imported, on stderr.
DRIVER = """
import sys
bare = set(sys.modules)
sys.path.insert(0, {root!r})
from cni_plugin.plugin import main
code = main()
print("IMPORTED", *sorted(set(sys.modules) - bare), file=sys.stderr)
sys.exit(code)
"""


def allowed(backend: str) -> set[str]:
    """Return the written list, with what one backend needs more."""
    names = ("modules.txt", f"modules-{backend}.txt")
    found: set[str] = set()
    for path in filter(os.path.exists, (os.path.join(HERE, name) for name in names)):
        with open(path, encoding="utf-8") as file:
            found |= {word for line in file for word in line.partition("#")[0].split()}
    return found


@pytest.fixture
def pod() -> Iterator[Netns]:
    """Make a sandbox."""
    made = Netns("house")
    yield made
    made.close()


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """Make a cgroup."""
    made = Cgroup()
    yield made
    made.close()


def imported(verb: str, pod: Netns, mesh: str, **places: object) -> set[str]:
    """Run one verb as a runtime does; return what it imported beyond a bare interpreter."""
    netconf = {
        "cniVersion": "1.1.0",
        "name": "house",
        "type": "mesh-redirect",
        "mesh": mesh,
        "agent": "never",
        **places,
        "cni.dev/valid-attachments": [],
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": "{}"}},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]},
    }
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "house",
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart",
    }
    done = subprocess.run(
        [PYTHON, "-IS", "-c", DRIVER.format(root=ROOT)],
        input=json.dumps(netconf),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("IMPORTED")]
    return set(line.split()[1:])


# The children of iptables are other processes: what they import, they pay for.
@pytest.mark.parametrize("backend", ["nftables", "iptables", "ebpf"])
@pytest.mark.parametrize("mesh", ["generic", "istio"])
def test_every_verb_imports_only_what_is_listed(
    pod: Netns, cgroup: Cgroup, tmp_path: object, mesh: str, backend: str
) -> None:
    """Red: a verb imports something new, and every pod of every node pays for it at every start."""
    need(backend)
    places = {"backends": [backend], "stateDir": str(tmp_path), "bpffs": bpffs(), "cgroup": cgroup.path}
    listed = allowed(backend)
    for verb in ("VERSION", "STATUS", "ADD", "CHECK", "DEL", "GC"):
        extra = imported(verb, pod, mesh, **places) - listed
        assert not extra, (
            f"{verb} imports {sorted(extra)}: list it in modules.txt with its reason, or do without"
        )
