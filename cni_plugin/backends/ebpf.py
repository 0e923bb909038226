"""Backend `ebpf`: sockets are redirected instead of packets.

Programs are loaded once a node and attached to the pod's cgroup; an ADD writes what they read, and its commit
is one map update. Not the programs (bpf/), nor the words they are told in (`policy`), nor the pins (`pins`).
"""

import fcntl
import os

from cni_plugin.backends import pins, policy, routes
from cni_plugin.backends.common import NO_RECORD, Placement, Unsupported
from cni_plugin.backends.maps import Maps
from cni_plugin.backends.policy import Policy
from cni_plugin.kernel import bpf, cgroup, libbpf, netns, network, userns
from cni_plugin.model.redirection import Redirection

_BPFFS_MAGIC, _CGROUP2_MAGIC = 0xCAFE4A11, 0x63677270  # linux/magic.h
# A connection takes over the mark of the SYN that opened it: so answers to a connection that the proxy made
# as its client, which it marks, are routed back to the proxy.
_ACCEPT_MARKS = "/proc/sys/net/ipv4/tcp_fwmark_accept"


class Ebpf:
    """The backend; every method but `forget` and `gc` works in the network namespace the process is in."""

    name = "ebpf"

    def __init__(self, placement: "Placement | None" = None) -> None:
        self._placement = placement or Placement()
        self._pins = pins.Pins(self._placement.bpffs)

    @property
    def _cgroup(self) -> str:
        """The cgroup that programs are attached to; "" if there is none of version 2."""
        place = self._placement
        root = place.cgroup_root or cgroup.mount()
        return cgroup.of_pod(root, place.pod_uid) or place.cgroup or root

    def probe(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Raise `Unsupported` unless every program loads here, and nobody above keeps ours from running."""
        try:
            policy.can_express(redirection, network.read())
            libbpf.available()
            if bpf.filesystem(self._placement.bpffs) != _BPFFS_MAGIC:
                raise Unsupported(f"no bpffs is mounted at {self._placement.bpffs}")
            if not self._cgroup:
                raise Unsupported("no cgroup hierarchy of version 2 is mounted")
            if bpf.filesystem(self._cgroup) != _CGROUP2_MAGIC:
                raise Unsupported(f"{self._cgroup} is no cgroup of version 2")
            if not netns.cookie():
                raise Unsupported("the kernel gives network namespaces no cookie")
            self._pins.load()
            self._ask_ancestors()
        except OSError as error:
            raise Unsupported(str(error)) from None

    def _ask_ancestors(self) -> None:
        """Refuse where a program above allows no other: ours could not be attached, or would silence it."""
        for path in cgroup.ancestors(self._cgroup):
            target = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for hook in pins.ATTACHED.values():
                    flags, programs = bpf.attached(target, hook, effective=False)
                    if programs and not flags & bpf.ALLOW_MULTI:
                        raise Unsupported(f"cgroup {path} has a {hook} program that allows no other")
            finally:
                os.close(target)

    def add(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Replace what is there by one map update. Raises `OSError`; what was there before still is then."""
        cookie = netns.cookie()
        where = cgroup.identity(self._cgroup)
        undo = routes.add(redirection, families)
        try:
            with self._maps() as maps:
                old = maps.policy(cookie)
                wanted = policy.policy(redirection, families, cookie, where, _next(old))
                maps.write_facts(wanted, policy.facts(redirection, network.read(), userns.Ids()))
                if redirection.inbound == "tproxy":
                    _accept_marks("1")
                with self._linked(where):
                    self._inbound(redirection, cookie)
                    self._listen(maps, cookie, redirection.inbound_port)
                    maps.commit(wanted)
                if old is not None:
                    self._retire(maps, old, wanted)
        except OSError:
            undo()
            self._forget_unless_committed(cookie)
            raise

    def _maps(self) -> Maps:
        self._pins.load()
        return Maps(self._pins)

    def _linked(self, where: int) -> pins.Lock:
        """Return the lock held, with the cgroup's links in place: nobody's DEL takes them away now."""
        lock = pins.Lock(self._pins.top, fcntl.LOCK_SH)
        if self._pins.has_links(where):
            return lock
        lock.__exit__()
        lock = pins.Lock(self._pins.top, fcntl.LOCK_EX)
        try:
            if not self._pins.has_links(where):
                self._pins.link_cgroup(self._cgroup, where)
        except OSError:
            lock.__exit__()
            raise
        return lock

    def _listen(self, maps: Maps, cookie: int, port: int) -> None:
        """Have the port's listeners kept, and adopt those of before: 2 ms, so only if there are any."""
        if maps.listen(cookie, port) and network.listens(port):
            _run(self._pins.program("adopt"))

    def _inbound(self, redirection: Redirection, cookie: int) -> None:
        if redirection.inbound == "off":
            return
        if not self._pins.has_inbound(cookie):
            here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._pins.link_inbound(cookie, here)
            finally:
                os.close(here)

    def _retire(self, maps: Maps, old: Policy, new: Policy) -> None:
        """Remove what the old policy had and the new one does not use."""
        if old.inbound_port != new.inbound_port:
            maps.forget_listeners(old.cookie, old.inbound_port)
        if not new.flags & policy.ON_INBOUND:
            self._pins.unlink_inbound(new.cookie)
        if old.flags & ~new.flags & policy.TPROXY:
            _accept_marks("0")
        if old.cgroup != new.cgroup:
            self._unlink_unused(maps, old.cgroup)

    def _forget_unless_committed(self, cookie: int) -> None:
        try:
            with self._maps() as maps:
                committed = maps.policy(cookie)
            if committed is None:
                self.forget(cookie)
        except (OSError, Unsupported):
            pass  # the failure to report is the first one

    def delete(
        self,
        redirection: Redirection = NO_RECORD,
        kept: Redirection | None = None,
        families: tuple[int, ...] = (),
    ) -> None:
        """Remove everything of ours but the routes that `kept` needs. Raises `OSError`."""
        if self._pins.is_used():
            cookie = netns.cookie()
            with Maps(self._pins) as maps:
                old = maps.policy(cookie)
            if old is not None and old.flags & policy.TPROXY:
                _accept_marks("0")
            self.forget(cookie)
        routes.delete(redirection, kept, families)

    def forget(self, cookie: int) -> None:
        """Remove all that belongs to the netns `cookie`, which may be gone. Raises `OSError`."""
        if not self._pins.is_used():
            return
        with Maps(self._pins) as maps:
            old = maps.policy(cookie)
            # First of all: without a policy every program passes.
            maps.remove_policy(cookie)
            maps.forget_facts(cookie)
            for port in maps.ports(cookie):
                maps.forget_listeners(cookie, port)
            self._pins.unlink_inbound(cookie)
            if old is not None:
                self._unlink_unused(maps, old.cgroup)

    def _unlink_unused(self, maps: Maps, where: int) -> None:
        with pins.Lock(self._pins.top, fcntl.LOCK_EX):
            if where not in maps.cgroups():
                self._pins.unlink_cgroup(where)

    def gc(self) -> None:
        """Remove what is nobody's: drafts of the dead, links of cgroups and sandboxes without a policy."""
        if not self._pins.is_used():
            return
        with Maps(self._pins) as maps, pins.Lock(self._pins.top, fcntl.LOCK_EX):
            self._pins.sweep()
            known = maps.cookies()
            for cookie in self._pins.sandboxes():
                if cookie not in known or self._is_detached(cookie):
                    maps.remove_policy(cookie)
                    maps.forget_facts(cookie)
                    for port in maps.ports(cookie):
                        maps.forget_listeners(cookie, port)
                    self._pins.unlink_inbound(cookie)
            used = maps.cgroups()
            for where in self._pins.cgroups():
                if where not in used:
                    self._pins.unlink_cgroup(where)

    def _is_detached(self, cookie: int) -> bool:
        """Tell whether the sandbox's netns is gone: its link then has none."""
        link = self._pins.inbound(cookie)
        try:
            # struct bpf_link_info: type, id, prog_id, padding, then for a netns link its inode.
            return bpf.identity(link, 5)[4] == 0
        finally:
            os.close(link)

    def check(self, redirection: Redirection, families: tuple[int, ...]) -> "list[str]":
        """Return what is missing, added or changed, a line each; what runs is asked of the kernel."""
        if not self._pins.is_used():
            return ["the node's programs are missing", *routes.check(redirection, families)]
        self._pins.load()
        cookie = netns.cookie()
        with Maps(self._pins) as maps:
            found = maps.policy(cookie)
            if found is None:
                return ["the sandbox's policy is missing", *routes.check(redirection, families)]
            where = cgroup.identity(self._cgroup)
            wanted = policy.policy(redirection, families, cookie, where, found.generation)
            lines = [
                f"policy: {name} is changed"
                for name, value in wanted.fields().items()
                if getattr(found, name) != value
            ]
            lines += _differences(
                policy.facts(redirection, network.read(), userns.Ids()), maps.facts(cookie, found.generation)
            )
        return lines + self._not_running(redirection, cookie) + routes.check(redirection, families)

    def counters(self) -> "dict[str, int]":
        """Return how often each row decided since the last `add`."""
        if not self._pins.is_used():
            return {}
        with Maps(self._pins) as maps:
            return maps.hits(netns.cookie())

    def _not_running(self, redirection: Redirection, cookie: int) -> "list[str]":
        lines = []
        target = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, hook in pins.ATTACHED.items():
                if _id(self._pins.program(name)) not in bpf.attached(target, hook)[1]:
                    lines.append(f"{hook}: the program does not run in {self._cgroup}")
        finally:
            os.close(target)
        if redirection.inbound != "off":
            here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                linked = self._pins.has_inbound(cookie) and _program_of(self._pins.inbound(cookie))
                if not linked or linked not in bpf.attached(here, "sk_lookup", effective=False)[1]:
                    lines.append("sk_lookup: the program does not run in the netns")
            finally:
                os.close(here)
        return lines


def _next(old: Policy | None) -> int:
    """Return the generation after the one in force."""
    first, second = policy.GENERATIONS
    return second if old is not None and old.generation == first else first


def _differences(wanted: "dict[bytes, bytes]", found: "dict[bytes, bytes]") -> "list[str]":
    lines = []
    for key in wanted.keys() | found.keys():
        if wanted.get(key) != found.get(key):
            verb = "missing" if key not in found else "not ours" if key not in wanted else "changed"
            lines.append(f"{policy.describe(key)} is {verb}")
    return sorted(lines)


def _accept_marks(value: str) -> None:
    with open(_ACCEPT_MARKS, "w") as file:
        file.write(value)


def _run(program: int) -> None:
    try:
        bpf.iterate(program)
    finally:
        os.close(program)


def _id(program: int) -> int:
    """Return the id of a program, whose descriptor is closed."""
    try:
        return bpf.identity(program)[1]
    finally:
        os.close(program)


def _program_of(link: int) -> int:
    """Return the id of a link's program; the link's descriptor is closed."""
    try:
        return bpf.identity(link, 3)[2]
    finally:
        os.close(link)
