"""`need(feature)`: the only way a test skips. It probes, and believes no version number.

A skip is allowed only when the probe says that the kernel lacks the feature. Where the kernel's own build
options promise it, a failing probe is a failing test. What was lacking is kept for the summary (tests/conftest.py).
"""

import glob
import gzip
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from tests.lab.ground import Cgroup, bpffs
from tests.lab.namespace import Namespace

IPPROTO_MPTCP = 262  # linux/in.h
lacking: dict[str, str] = {}


@dataclass(frozen=True)
class Feature:
    """A probe that raises with the reason when the feature is not there, and the options that promise it."""

    probe: Callable[[], None]
    options: tuple[str, ...]


def need(feature: str) -> None:
    """Go on only where `feature` is there; see the module's docstring for what happens elsewhere."""
    reason = _reason(feature)
    if not reason:
        return
    if _promised(FEATURES[feature].options):
        pytest.fail(f"this kernel is built with {feature}, but: {reason}")
    lacking[feature] = reason
    pytest.skip(f"this kernel lacks {feature}: {reason}")


@cache
def _reason(feature: str) -> str:
    try:
        FEATURES[feature].probe()
    except (OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""


def _promised(options: tuple[str, ...]) -> bool:
    built = _kernel_options()
    return bool(built) and all(option in built for option in options)


@cache
def _kernel_options() -> frozenset[str]:
    """Return what the running kernel was built with, as far as it can be known."""
    for path, opener in (("/proc/config.gz", gzip.open), (f"/boot/config-{os.uname().release}", open)):
        if os.path.exists(path):
            with opener(path, "rt") as file:
                return frozenset(
                    line.partition("=")[0] for line in file if line.rstrip().endswith(("=y", "=m"))
                )
    return frozenset()


def _in_scratch_netns(*commands: tuple[str, ...], text: str = "") -> None:
    namespace = Namespace()
    try:
        for command in commands:
            namespace.run(*command, text=text)
    finally:
        namespace.close()


_NFT = """
table inet probe {
    chain nat { type nat hook output priority -100; meta skuid 1 tcp dport 1 redirect to :2; }
    chain mangle { type filter hook prerouting priority -150; meta l4proto tcp tproxy to :1; }
}
"""


def _nftables() -> None:
    _in_scratch_netns(("nft", "-f", "-"), text=_NFT)


def _iptables() -> None:
    owned = ("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-m", "owner", "--uid-owner", "1", "-j", "REDIRECT")
    tproxy = ("-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", "TPROXY", "--on-port", "1")
    _in_scratch_netns(
        *((tool, *rule) for tool in ("iptables-legacy", "ip6tables-legacy") for rule in (owned, tproxy)),
    )


def _ebpf() -> None:
    """Load every kind of program the datapath is made of, as somebody else's tool does."""
    where = Cgroup()
    try:
        bpffs()
        known = subprocess.run(
            ["bpftool", "feature", "probe", "kernel"], capture_output=True, text=True
        ).stdout
        for kind in ("cgroup_sock_addr", "cgroup_sockopt", "sock_ops", "sk_lookup"):
            if f"eBPF program_type {kind} is available" not in known:
                raise OSError(f"program type {kind} is not available")
        os.stat("/sys/kernel/btf/vmlinux")
    finally:
        where.close()


def _user_namespaces() -> None:
    namespace = Namespace(user=True)
    try:
        namespace.wait_until_started()
    finally:
        namespace.close()


def _mptcp() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()


def _containers() -> None:
    """Try what a container needs beside a netns: mounts, a pid namespace and a cgroup of its own."""
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/run"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    # Version 2 has its files at the top, version 1 a directory per controller.
    tops = glob.glob("/sys/fs/cgroup/cgroup.procs") + glob.glob("/sys/fs/cgroup/*/cgroup.procs")
    if not any(os.access(top, os.W_OK) for top in tops):
        raise RuntimeError("no cgroup hierarchy is mounted, writable, at /sys/fs/cgroup")


FEATURES = {
    "nftables": Feature(
        _nftables, ("CONFIG_NF_TABLES_INET", "CONFIG_NFT_NAT", "CONFIG_NFT_REDIR", "CONFIG_NFT_TPROXY")
    ),
    "iptables": Feature(
        _iptables, ("CONFIG_IP_NF_NAT", "CONFIG_IP6_NF_NAT", "CONFIG_NETFILTER_XT_TARGET_TPROXY")
    ),
    "containers": Feature(_containers, ("CONFIG_PID_NS", "CONFIG_CGROUP_PIDS")),
    "ebpf": Feature(_ebpf, ("CONFIG_BPF_SYSCALL", "CONFIG_CGROUP_BPF", "CONFIG_DEBUG_INFO_BTF")),
    "user namespaces": Feature(_user_namespaces, ("CONFIG_USER_NS",)),
    "mptcp": Feature(_mptcp, ("CONFIG_MPTCP", "CONFIG_MPTCP_IPV6")),
}
