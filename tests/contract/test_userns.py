"""A pod with a user namespace of its own (`hostUsers: false`): owners are ids as that namespace sees them."""

from collections.abc import Iterator

import pytest

from cni_plugin.model.redirection import ANYWHERE
from tests.contract.run import LISTENERS
from tests.contract.table import BASE, port
from tests.lab import effects
from tests.lab.namespace import USERNS_FIRST
from tests.lab.need import need
from tests.lab.topology import PROXY, Pod, address

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def user_pod() -> Iterator[Pod]:
    """Give a pod whose ids 0..65535 are others on the machine."""
    need("user namespaces")
    pod = Pod(user=True)
    yield pod
    pod.close()


@FAMILIES
@pytest.mark.parametrize("inbound", ["redirect", "tproxy"])
def test_owners_are_the_sandboxs_own_ids(user_pod: Pod, backend: str, family: int, inbound: str) -> None:
    """The proxy's own traffic loops back into it, because the rules hold the machine's ids."""
    user_pod.program(backend, BASE.replace(dns=ANYWHERE, inbound=inbound))
    service, own, resolver = (address(name, family) for name in ("service", "own", "resolver"))
    assert user_pod.dial(service, 80, uid=1000, gid=1000).port == LISTENERS["outbound"]
    assert user_pod.dial(service, 80, uid=PROXY).where == "outside"
    assert user_pod.dial(service, 80, gid=PROXY).where == "outside"
    assert user_pod.dial(own, 80, uid=PROXY).port == LISTENERS["inbound"]
    assert user_pod.dial(resolver, 53, protocol="udp", uid=1000).port == LISTENERS["dns"]
    assert user_pod.dial(resolver, 53, protocol="udp", uid=PROXY).where == "outside"
    assert user_pod.outside.dial(own, 80).port == LISTENERS["inbound"]


def test_the_machines_ids_mean_nothing(user_pod: Pod, backend: str) -> None:
    """An id of the machine that is no id of the sandbox matches somebody in it."""
    user_pod.program(backend, BASE.replace(proxy_uids=port(PROXY), proxy_gids=port(PROXY)))
    assert user_pod.dial("10.1.2.3", 80, uid=7, gid=7).port == LISTENERS["outbound"]
    assert USERNS_FIRST + PROXY > 65_535


def test_delete_leaves_nothing(user_pod: Pod, backend: str) -> None:
    """Rules or routes can be made in such a netns, but not taken away."""
    user_pod.clear()
    before = effects.everything(user_pod.namespace)
    user_pod.add(backend, BASE.replace(inbound="tproxy", dns=ANYWHERE))
    user_pod.clear(backend)
    assert effects.everything(user_pod.namespace) == before
