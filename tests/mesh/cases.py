"""What the dialects' tests share: a netconf, a pod of each mesh, and words for values.

Not a copy of the readers: prefixes and spans are stated here by hand or with the standard library.
"""

import ipaddress

from cni_plugin.config.fields import redirection_fields
from cni_plugin.mesh import dialect
from cni_plugin.model.decision import Decision
from cni_plugin.model.request import Netconf

POD = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "cart-0"}
V4 = ipaddress.ip_address("10.1.2.3").packed
V6 = ipaddress.ip_address("fd00::3").packed


def prefixes(*texts: str) -> tuple[tuple[bytes, int], ...]:
    """Return prefixes as `Redirection` holds them, in the order given."""
    networks = [ipaddress.ip_network(text) for text in texts]
    return tuple((network.network_address.packed, network.prefixlen) for network in networks)


def spans(*items: int | tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return spans as `Redirection` holds them, in the order given."""
    return tuple(item if isinstance(item, tuple) else (item, item) for item in items)


def netconf(mesh: str, redirection: dict | None = None, **more) -> Netconf:
    """Return a netconf of `mesh` whose "redirection" is written as people do."""
    fields = redirection_fields("redirection", redirection or {})
    return Netconf(cni_version="1.0.0", name="test", mesh=mesh, redirection=fields, **more)


def decide(
    conf: Netconf, args: dict[str, str] | None = None, addresses: tuple[bytes, ...] = (V4,)
) -> Decision:
    """Decide for a Kubernetes pod, unless `args` says otherwise."""
    return dialect.decide(conf, POD if args is None else args, list(addresses))
