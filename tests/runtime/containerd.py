"""A real containerd on a throw-away node, and pods made through CRI, as a kubelet makes them.

Not the machine's containerd: this one has mounts, processes and a cgroup of its own, and all of them end
with it. Images hold nothing but a pause program; containers see the machine's programs, read-only.
"""

import glob
import hashlib
import io
import json
import os
import sys
import tarfile
from typing import IO, Any

import grpc
from cri_api.v1 import api_pb2 as cri
from cri_api.v1 import api_pb2_grpc as services

from tests.runtime.node import APP, PYTHON, TALK, Node, run, until

IMAGE = "localhost/mesh-redirect-test/pause:1"
PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
# Over /run: containerd's sockets and fifos, runc's state and the sandboxes' netns have fixed places in there.
# Over /var/lib: libcni's cache.
OWN_MACHINE = 'mount -t tmpfs none /run && mount -t tmpfs none /var/lib && exec containerd --config "$0"'
# What a container needs to run the machine's programs.
PROGRAMS = ("/usr", "/lib", "/lib64", sys.base_prefix)
SECONDS = 30
CONFIG = """\
version = 2
root = "{home}/root"
state = "{home}/state"
[grpc]
  address = "{home}/socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  # Root may lack CAP_SYS_RESOURCE, AppArmor and huge pages may not be there: none is what is tested.
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{net_d}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def _image(path: str) -> None:
    """Write a docker archive with one layer: a static pause program and the mount points."""
    built = f"{path}.pause"
    run("gcc", "-static", "-Os", "-xc", "-", "-o", built, input=PAUSE)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in ("proc", "sys", "dev", "tmp", "etc", *(name[1:] for name in PROGRAMS)):
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        tar.add(built, "pause")
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "Env": ["PATH=/usr/bin:/usr/sbin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Containerd:
    """The node's runtime: `pod()` runs a sandbox through the chain of `network`, which is there before."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._home = os.path.join(node.directory, "containerd")
        self.cgroup = f"/{node.netns.name}"
        os.mkdir(self._home)
        config = os.path.join(self._home, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(home=self._home, image=IMAGE, bin=node.bin, net_d=node.net_d))
        self._log = os.path.join(self._home, "log")
        # The first process of a pid namespace takes all others with it: shims and containers too.
        alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = node.netns.start(*alone, "sh", "-c", OWN_MACHINE, config, output=log)
        until(self._answers, "containerd to answer")
        channel = grpc.insecure_channel(f"unix://{self._home}/socket")
        self._channel = channel
        self.runtime = services.RuntimeServiceStub(channel)
        self._import(services.ImageServiceStub(channel))

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            with open(self._log, encoding="utf-8") as file:
                raise AssertionError(f"containerd ended:\n{file.read()[-3000:]}")
        return os.path.exists(f"{self._home}/socket")

    def _import(self, images: Any) -> None:
        archive = os.path.join(self._home, "image.tar")
        _image(archive)
        ctr = ("ctr", "--address", f"{self._home}/socket", "--namespace", "k8s.io")
        run(*ctr, "images", "import", "--snapshotter", "native", archive)
        # CRI hears of images by an event.
        wanted = cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))
        until(lambda: images.ImageStatus(wanted, timeout=SECONDS).image.id, "CRI to know the image")

    def inside(self, path: str) -> str:
        """Return a path of containerd's mounts, under /run, as we can open it."""
        children = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        with open(children, encoding="ascii") as file:
            # Not by way of /var/run: an absolute link would lead into our own mounts.
            return f"/proc/{file.read().split()[0]}/root{path.removeprefix('/var')}"

    def pod(self, name: str, annotations: dict[str, str]) -> "Pod":
        """Run a sandbox. Raises `grpc.RpcError` with the chain's error if it is refused."""
        return Pod(self, self._node, name, annotations)

    def close(self) -> None:
        """End containerd with all it started, then remove the cgroup that containers were in."""
        self._channel.close()
        self._node.netns.stop(self._process)
        for pattern in (f"/sys/fs/cgroup{self.cgroup}", f"/sys/fs/cgroup/*{self.cgroup}"):
            for top in glob.glob(pattern):
                # The last processes may still be on their way out.
                until(lambda top=top: _removed(top), f"{top} to be empty")


def _removed(top: str) -> bool:
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


class Container:
    """A running container, as `Netns.start` gives a process."""

    def __init__(self, runtime: Any, name: str) -> None:
        self._runtime = runtime
        self.name = name

    def poll(self) -> int | None:
        """Return the exit code, or None as long as it runs."""
        asked = cri.ContainerStatusRequest(container_id=self.name)
        status = self._runtime.ContainerStatus(asked, timeout=SECONDS).status
        return status.exit_code if status.state == cri.CONTAINER_EXITED else None

    def run(self, *command: str) -> str:
        """Run `command` in the container, as its user, and return what it printed."""
        asked = cri.ExecSyncRequest(container_id=self.name, cmd=command, timeout=SECONDS)
        done = self._runtime.ExecSync(asked, timeout=SECONDS)
        assert done.exit_code == 0, (command, done.stdout, done.stderr)
        return str(done.stdout.decode())


class Pod:
    """A sandbox of containerd's, with what `Netns` offers to those who only start, look and call."""

    def __init__(self, containerd: Containerd, node: Node, name: str, annotations: dict[str, str]) -> None:
        self._runtime = containerd.runtime
        self._node = node
        self.name = name
        pod = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
        self._namespaces = pod
        self._config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, namespace="shop", uid=f"uid-of-{name}", attempt=0),
            hostname=name,
            log_directory=node.directory,
            annotations=annotations,
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=containerd.cgroup,
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=pod),
            ),
        )
        asked = cri.RunPodSandboxRequest(config=self._config)
        self.id = self._runtime.RunPodSandbox(asked, timeout=SECONDS).pod_sandbox_id
        asked = cri.PodSandboxStatusRequest(pod_sandbox_id=self.id, verbose=True)
        told = self._runtime.PodSandboxStatus(asked, timeout=SECONDS)
        network = told.status.network
        self.addresses = [network.ip, *(more.ip for more in network.additional_ips)]
        spec = json.loads(told.info["info"])["runtimeSpec"]
        (path,) = [space["path"] for space in spec["linux"]["namespaces"] if space["type"] == "network"]
        self.path = containerd.inside(path)

    def start(
        self, *command: str, uid: int = 0, capabilities: str = "", output: IO[str] | None = None
    ) -> Container:
        """Start `command` as a container of its own, as `uid` and the gid of the same number."""
        name = os.path.basename(command[0])
        home = self._node.directory
        places = [*(place for place in PROGRAMS if os.path.exists(place)), os.path.dirname(command[0]), home]
        mounts = [
            cri.Mount(host_path=os.path.realpath(place), container_path=place, readonly=place != home)
            for place in dict.fromkeys(places)
        ]
        user = {"run_as_user": cri.Int64Value(value=uid), "run_as_group": cri.Int64Value(value=uid)}
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=IMAGE),
            command=command,
            mounts=mounts,
            log_path=os.path.relpath(output.name, home) if output else f"{self.name}-{name}.log",
            linux=cri.LinuxContainerConfig(
                security_context=cri.LinuxContainerSecurityContext(namespace_options=self._namespaces, **user)
            ),
        )
        asked = cri.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self._config)
        made = self._runtime.CreateContainer(asked, timeout=SECONDS).container_id
        self._runtime.StartContainer(cri.StartContainerRequest(container_id=made), timeout=SECONDS)
        return Container(self._runtime, made)

    def stop(self, container: Container) -> None:
        """Stop one container at once."""
        asked = cri.StopContainerRequest(container_id=container.name, timeout=0)
        self._runtime.StopContainer(asked, timeout=SECONDS)

    def run(self, *command: str) -> str:
        """Run a tool of the machine's in the sandbox's netns alone, to look at it."""
        return run("nsenter", f"--net={self.path}", *command)

    def listening(self, port: int) -> bool:
        """Say whether some process in here listens on TCP `port`, as ss sees it."""
        return f":{port} " in self.run("ss", "-Hltn")

    def serve(self, name: str, port: int) -> Container:
        """Start an application that says it is `name`; it listens on return."""
        app = self.start(PYTHON, "-ISc", TALK, "serve", name, str(port), uid=APP)
        until(lambda: self.listening(port), f"{name} to listen")
        return app

    def close(self) -> None:
        """Stop and remove the sandbox, as a kubelet does: the chain's DEL runs in both."""
        self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=SECONDS)
        self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.id), timeout=SECONDS)


def call(app: Container, address: str, port: int) -> dict[str, Any]:
    """Ask `address` from inside the container, as `Netns.call` does."""
    told: dict[str, Any] = json.loads(app.run(PYTHON, "-ISc", TALK, "call", address, str(port), "5"))
    return told
