"""What people are shown of the programs' policy is what was asked for: decoding undoes encoding."""

import pytest

from cni_plugin.backends import policy, sight
from cni_plugin.config import fields
from cni_plugin.kernel.network import Network
from cni_plugin.model.parse import prefixes_text
from cni_plugin.model.redirection import ANYWHERE, Redirection, UidExclusion
from tests.backends.samples import SAMPLES
from tests.contract.table import CASES, cidrs

NETWORK = Network(interfaces={1: "lo", 2: "eth0", 3: "net1"}, routes=())
# Of these the programs are told nothing, or not in these words.
NOT_TOLD = {
    "families",
    "virtualInterfaces",
    "dropInvalid",
    "tproxyTable",
    "dns",
    "dnsAddress",
    "dnsProtocols",
}
NESTED = Redirection(
    exclude_outbound_cidrs=cidrs("10.1.0.0/16", "2001:db8::/32"),
    include_outbound_cidrs=cidrs("10.0.0.0/8"),
    exclude_inbound_cidrs=cidrs("10.1.2.0/24", "10.1.4.0/24"),
    exclude_outbound_ports_for_uids=(
        UidExclusion(uids=((5, 9), (12, 12)), ports=((1, 80),)),
        UidExclusion(uids=((7, 7),), protocols=("udp",)),
    ),
)


def _redirections() -> "list[Redirection]":
    lines = [Redirection(proxy_uids=((1337, 1337),)).replace(**case.changes) for case in CASES]
    found = [*SAMPLES.values(), NESTED, *lines]
    # Names that end in "+" are told as the interfaces they match.
    return [r.replace(exclude_interfaces=("net1",) if r.exclude_interfaces else ()) for r in found]


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_what_is_shown_is_what_was_asked_for(families: tuple[int, ...]) -> None:
    """A range loses an edge on its way to people, or they are shown every prefix that inherits a bit."""
    for redirection in _redirections():
        told = policy.policy(redirection, families, 7, 8, 1)
        facts = policy.facts(redirection, NETWORK, lambda kind, ids: ids)
        shown = sight.decoded(told, facts, NETWORK.interfaces)
        asked = fields.to_json(redirection)
        for field in asked.keys() - NOT_TOLD:
            assert shown[field] == asked[field], (field, redirection)
        assert shown["dns"] == ("*" if redirection.dns == ANYWHERE else prefixes_text(redirection.dns))
        assert shown["families"] == list(families)
