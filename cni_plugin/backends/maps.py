"""The node's pinned maps (bpf/maps.h), in the backend's words. What is to be in them `policy` says."""

from cni_plugin.backends import pins, policy
from cni_plugin.backends.policy import Policy
from cni_plugin.kernel import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_COOKIE, _KEY, _FACT, _POLICY, _LISTENED = 8, 32, 32, 88, 16
_HITS = 144  # of one CPU
# Listeners of one port that are kept (bpf/maps.h, SLOTS).
_SLOTS = 64


class Maps:
    """The node's maps, in the words of this backend."""

    def __init__(self, tree: pins.Pins) -> None:
        self._policies = tree.map("policies", _COOKIE, _POLICY)
        self._facts = tree.map("facts", _KEY, _FACT)
        self._ports = tree.map("ports", _LISTENED, 4)
        self._listeners = tree.map("listeners", _LISTENED, 8)
        # Of every CPU, one after the other.
        self._counters = tree.map("counters", _COOKIE, _HITS * bpf.cpus())

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        maps = (self._policies, self._facts, self._ports, self._listeners, self._counters)
        bpf.close_all(found.fd for found in maps)

    def policy(self, cookie: int) -> "Policy | None":
        """Return the policy in force."""
        found = self._policies.get(cookie.to_bytes(_COOKIE, "little"))
        return None if found is None else Policy.of(found)

    def commit(self, wanted: Policy) -> None:
        """Put a policy in force, and count anew."""
        key = wanted.cookie.to_bytes(_COOKIE, "little")
        self._counters.update(key, bytes(self._counters.value_size))
        self._policies.update(key, wanted.to_bytes())

    def remove_policy(self, cookie: int) -> None:
        """Put none in force, and count no more."""
        key = cookie.to_bytes(_COOKIE, "little")
        self._policies.remove(key)
        self._counters.remove(key)

    def hits(self, cookie: int) -> "dict[str, int]":
        """Return how often each row decided on all CPUs, those that never did left out."""
        from cni_plugin.backends.hits import ROWS  # noqa: PLC0415 - for people, never on the runtime's path

        found = self._counters.get(cookie.to_bytes(_COOKIE, "little")) or b""
        counts = {
            row: sum(
                int.from_bytes(found[at : at + 8], "little") for at in range(8 * number, len(found), _HITS)
            )
            for number, row in enumerate(ROWS, 1)
        }
        return {row: count for row, count in counts.items() if count}

    def cookies(self) -> "set[int]":
        """Return the sandboxes that have a policy."""
        return {int.from_bytes(key, "little") for key in self._policies.walk()}

    def cgroups(self) -> "set[int]":
        """Return the cgroups whose links some policy needs."""
        found = (self._policies.get(key) for key in list(self._policies.walk()))
        return {Policy.of(value).cgroup for value in found if value is not None}

    def write_facts(self, wanted: Policy, facts: "dict[bytes, bytes]") -> None:
        """Write the facts of a generation that is not in force, in place of those of two generations ago.

        The ones in force are kept until the next change: a program may be about to read them.
        """
        self._forget(wanted.cookie, wanted.generation)
        edges = policy.edges(wanted.cookie, wanted.generation)
        # The edges first: by them what a killed ADD left is found again.
        for edge in edges:
            self._facts.update(edge, bytes(_FACT))
        self._facts.fill(policy.placed(wanted.cookie, wanted.generation, facts))

    def facts(self, cookie: int, generation: int) -> "dict[bytes, bytes]":
        """Return the facts of a generation, as `policy.facts` makes them."""
        found = {}
        for key in self._walk(cookie, generation):
            value = self._facts.get(key)
            if value is not None:
                found[policy.unplaced(key)] = value
        return found

    def forget_facts(self, cookie: int) -> None:
        """Remove the facts of every generation."""
        for generation in policy.GENERATIONS:
            self._forget(cookie, generation)

    def _forget(self, cookie: int, generation: int) -> None:
        first, last = policy.edges(cookie, generation)
        for key in [*self._walk(cookie, generation), first, last]:
            self._facts.remove(key)

    def _walk(self, cookie: int, generation: int) -> "list[bytes]":
        """Return the keys between the edges: a trie's next key is the next of its depth-first walk."""
        first, last = policy.edges(cookie, generation)
        if self._facts.get(first) is None:
            return []
        keys = []
        for key in self._facts.walk(first):
            if key == last:
                break
            keys.append(key)
        return keys

    def listen(self, cookie: int, port: int) -> bool:
        """Have the listeners of a port kept; tell whether older ones are to be adopted."""
        key = _listened(cookie, port)
        if self._ports.get(key) is not None:
            return False
        self._ports.update(key, bytes(4))
        return True

    def ports(self, cookie: int) -> "list[int]":
        """Return the ports whose listeners are kept."""
        start = cookie.to_bytes(8, "little")
        return [int.from_bytes(key[8:12], "little") for key in list(self._ports.walk()) if key[:8] == start]

    def forget_listeners(self, cookie: int, port: int) -> None:
        """Keep the listeners of a port no more."""
        self._ports.remove(_listened(cookie, port))
        for slot in range(_SLOTS):
            self._listeners.remove(_listened(cookie, port, slot))


def _listened(cookie: int, port: int, slot: int = 0) -> bytes:
    return cookie.to_bytes(8, "little") + port.to_bytes(4, "little") + slot.to_bytes(4, "little")
