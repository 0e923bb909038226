"""The decision: pod facts and a dialect in, a `Decision` out. No network, no netns, no clock.

Not where a mesh is described: that is `dialects/<mesh>.toml`, whose format `compile` explains.

Reasons are stable; they are recorded, counted and shown:

| verdict | reason | when |
|---|---|---|
| pass | excluded-namespace | the pod's namespace is in the netconf's excludeNamespaces |
| pass | own-agent | the pod is this project's own agent, which must start before anything else |
| pass | not-kubernetes | the dialect is for Kubernetes, CNI_ARGS name no pod |
| pass | not-meshed | the dialect does not recognise the pod |
| pass | not-configured | the dialect recognises nothing by itself and no redirection is configured |
| pass | init-container | an init container of the pod programs the redirection |
| pass | no-proxy | the pod was recognised but has no sidecar proxy |
| pass | opted-out | the pod or the attachment says no |
| pass | interception-none | the pod's mesh intercepts nothing in it |
| retry | annotations-missing | the dialect needs annotations and the runtime delivered none |
| retry | agent-required | the netconf demands the agent's decision and the agent was not asked |
| redirect | meshed | the dialect recognised the pod |
| redirect | configured | a redirection is configured |
"""

import os

from cni_plugin.mesh import effective, facts
from cni_plugin.model import minijson
from cni_plugin.model.decision import PASS, REDIRECT, RETRY, Decision
from cni_plugin.model.errors import bad_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_plugin.model.request import Netconf

    Settled = tuple[str, str, str]

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dialects")
AGENT_PREFIX = "mesh-redirect-agent-"  # the DaemonSet's name: load-bearing, install/ uses the same

AGENT_REQUIRED = ("agent-required", 'the netconf says "agent": "require" and no agent answered')
ANNOTATIONS_MISSING = (
    "annotations-missing",
    "the runtime delivered no pod annotations, so nothing tells whether the pod is meshed: it has to be one "
    "that can (containerd and CRI-O can), and the plugin's object in the conflist has to say "
    '"capabilities": {"io.kubernetes.cri.pod-annotations": true}',
)


def decide(netconf: "Netconf", args: "dict[str, str]", addresses: "list[bytes]") -> Decision:
    """Return what is to be done for the pod that `args` (CNI_ARGS) and the netconf's annotations describe.

    `addresses` are the pod's, packed. Raises `CniError`: 102 for a bad annotation, 4 for a bad value in
    CNI_ARGS, 7 for the netconf, each naming the value and what was expected.
    """
    dialect = load(netconf.mesh)
    known = facts.gather(netconf, args)
    settled = _without_facts(netconf, dialect, args) or _not_meshed(dialect, known)
    # After the dialect has looked: a pod that is provably not meshed starts with or without an agent.
    if settled is None and netconf.agent == "require":
        settled = RETRY, *AGENT_REQUIRED
    if settled is not None:
        verdict, reason, detail = settled
        return Decision(verdict=verdict, reason=reason, detail=detail, mesh=netconf.mesh)
    found = effective.build(dialect, known, netconf.redirection, addresses)
    reason, detail = dialect["reason"], dialect["detail"]
    return Decision(verdict=REDIRECT, reason=reason, detail=detail, mesh=netconf.mesh, **found)


def _without_facts(netconf: "Netconf", dialect: "dict[str, Any]", args: "dict[str, str]") -> "Settled | None":
    """Return verdict, reason and detail where no fact about the pod but its name is needed."""
    namespace, pod = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
    if namespace in netconf.exclude_namespaces:
        return PASS, "excluded-namespace", f"namespace {namespace} is in excludeNamespaces"
    if namespace == netconf.agent_namespace and pod.startswith(AGENT_PREFIX):
        return PASS, "own-agent", f"{namespace}/{pod} is this plugin's own agent"
    if "kubernetes" in dialect["needs"] and not (namespace and pod):
        return PASS, "not-kubernetes", "CNI_ARGS lacks K8S_POD_NAMESPACE or K8S_POD_NAME"
    if "annotations" in dialect["needs"] and netconf.pod_annotations is None:
        return RETRY, *(AGENT_REQUIRED if netconf.agent == "require" else ANNOTATIONS_MISSING)
    return None


def _not_meshed(dialect: "dict[str, Any]", known: "dict[str, dict[str, Any]]") -> "Settled | None":
    for row in dialect["pass"]:
        if facts.holds(known, row):
            return PASS, row["reason"], row["detail"]
    return None


def load(mesh: str) -> "dict[str, Any]":
    """Return the dialect of `mesh`: as compiled with the package, else (source tree) from its TOML.

    Raises `CniError` 7 for a mesh that has none.
    """
    base = os.path.join(DIRECTORY, mesh)
    built, written = _time(base + ".json"), _time(base + ".toml")
    if built < 0 and written < 0:
        raise bad_field("mesh", mesh, "one of " + ", ".join(meshes()))
    if built >= written:
        with open(base + ".json", "rb") as file:
            loaded: dict[str, Any] = minijson.loads(file.read())
            return loaded
    # tomllib costs more than a whole ADD; an installed plugin never comes here.
    from cni_plugin.mesh.compile import compiled  # noqa: PLC0415

    return compiled(base + ".toml")


def meshes() -> list[str]:
    """Return the meshes that have a dialect."""
    files = [name.partition(".") for name in os.listdir(DIRECTORY)]
    return sorted({name for name, _, kind in files if kind in ("toml", "json")})


def _time(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1
