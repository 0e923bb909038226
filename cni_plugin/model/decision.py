"""`Decision`: what is to be done for a pod, why, and where each value came from.

Not how it is made: `mesh.dialect` decides.
"""

from cni_plugin.model.redirection import Redirection
from cni_plugin.model.value import Value

PASS = "pass"
REDIRECT = "redirect"
RETRY = "retry"
REJECT = "reject"


class Decision(Value):
    """A verdict with its reason.

    `reason` is a stable slug (README, "Reasons"), `detail` one sentence for people.
    `origins` maps a Redirection field to where its value came from ("dialect default", "netconf
    redirection.dns", "annotation NAME"). `unknown` lists facts that could not be had and what was
    assumed. `warnings` are things the operator should know although the pod starts.
    """

    verdict: str
    reason: str
    detail: str
    mesh: str = ""
    redirection: Redirection | None = None
    origins: "dict[str, str]" = {}
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
