"""python-iptables (libiptc) behind the face of iptables-save and iptables-restore, a child for each call.

Not for this process: the library keeps the tables of the namespace it saw first, cannot do both families in
one process, may call exit(1), and takes 190 ms to import. A child does one thing in one family and ends.
"""

import os
import sys

from cni_plugin.backends.xtables import waited
from cni_plugin.kernel import netns
from cni_plugin.kernel.process import Child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TABLES = ("raw", "mangle", "nat", "filter")
# Every extension our rules use. If these come back as they went in, the rest does.
_TRIAL = """\
*raw
:TRIAL - [0:0]
-A TRIAL -p udp -m udp --dport 53 -j CT --zone-orig 2
COMMIT
*mangle
:TRIAL - [0:0]
-A TRIAL -p tcp -m mark --mark 0x539 -m socket --transparent -j MARK --set-xmark 0x53a/0xffffffff
-A TRIAL -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A TRIAL -p tcp -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:GONE_TO - [0:0]
:TRIAL - [0:0]
-A OUTPUT -j TRIAL
-A TRIAL -o lo+ -p tcp -m comment --comment "a b" -m multiport --dports 1:2,3 -j REDIRECT --to-ports 6
-A TRIAL -p tcp -m tcp --dport 1 --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
-A TRIAL -i eth0 -m addrtype --src-type LOCAL -m owner --uid-owner 4-5 -g GONE_TO
COMMIT
"""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LIBRARY_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib/aarch64-linux-gnu/xtables",
    "/usr/lib/xtables",
)


class PythonIptables:
    """The applier; `why_not` has said that it works here."""

    def save(self, family: int, counters: bool = False) -> str:
        """Return what iptables-save would print of chains and rules. Raises `OSError`."""
        return waited(Child(lambda: _Library(family).save(counters)))

    def restore(self, family: int, text: str) -> Child:
        """Start doing what iptables-restore --noflush would."""

        def work() -> str:
            _Library(family).restore(text)
            return ""

        return Child(work)

    def reprinted(self, family: int, text: str) -> str:
        """Return `text` as `save` would print it, by way of a scratch network namespace."""

        def work() -> str:
            netns.unshare(netns.CLONE_NEWNET)
            library = _Library(family)
            library.restore(text)
            return library.save()

        return waited(Child(work))


def why_not(cache_dir: str) -> str:
    """Return "" if python-iptables is here and drives the libxtables it finds, else the reason.

    Tried once per boot: the answer is kept in `cache_dir`, because the trial takes half a second.
    """
    if not any(os.path.isdir(f"{directory}/iptc") for directory in sys.path):
        return "is not installed"
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = file.read()
    path = f"{cache_dir}/python-iptables"
    try:
        with open(path, encoding="utf-8") as file:
            known, _, reason = file.read().partition("\n")
        if known + "\n" == boot:
            return reason
    except OSError:
        pass
    reason = _trial()
    os.makedirs(cache_dir, mode=0o700, exist_ok=True)
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        file.write(boot + reason)
    os.rename(file.name, path)
    return reason


def _trial() -> str:
    for family in (4, 6):
        try:
            printed = PythonIptables().reprinted(family, _TRIAL).splitlines()
        except OSError as error:
            return f"does not work with the libxtables of this host: {error}"
        lost = [line for line in _TRIAL.splitlines() if line.startswith("-A") and line not in printed]
        if lost:
            return f"loses part of a rule with the libxtables of this host: {lost[0]}"
    return ""


class _Library:
    """python-iptables for one family, in a child."""

    def __init__(self, family: int) -> None:
        for directory in _LIBRARY_DIRECTORIES:
            if os.path.isdir(directory):
                # Otherwise it asks ldconfig and gcc, which a host may not have.
                os.environ.setdefault("XTABLES_LIBDIR", directory)
        import iptc  # noqa: PLC0415 - only in a child

        # After the import: the user namespace's root may not be able to read our files.
        netns.enter_owning_user_namespace()
        self._iptc: Any = iptc
        self._rule = iptc.Rule if family == 4 else iptc.Rule6
        self._table = iptc.Table if family == 4 else iptc.Table6
        self._tables: dict[str, Any] = {}

    def _open(self, name: str) -> "Any":
        if name not in self._tables:
            self._tables[name] = self._table(name)
            self._tables[name].autocommit = False
        return self._tables[name]

    def restore(self, text: str) -> None:
        import shlex  # noqa: PLC0415 - only in a child

        table: Any = None
        for line in text.splitlines():
            words = shlex.split(line)
            match words:
                case [name] if name.startswith("*"):
                    table = self._open(name[1:])
                case ["COMMIT"]:
                    table.commit()
                    table.refresh()
                case ["-F", name]:
                    self._iptc.Chain(table, name).flush()
                case ["-X", name]:
                    table.delete_chain(name)
                case ["-D", name, "-j", target]:
                    self._delete_jump(table, name, target)
                case ["-A", name, *options]:
                    self._iptc.Chain(table, name).append_rule(self._parsed(options))
                case [name, *_] if name.startswith(":"):
                    table.create_chain(name[1:])
                case _:
                    raise ValueError(f"not a line of ours: {line}")

    def _delete_jump(self, table: "Any", name: str, target: str) -> None:
        chain = self._iptc.Chain(table, name)
        for rule in chain.rules:
            if rule.target is not None and rule.target.name == target:
                chain.delete_rule(rule)
                return

    def _parsed(self, words: "list[str]") -> "Any":
        rule = self._rule()
        fields = {"-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}
        extension: Any = None
        at = 0
        while at < len(words):
            option, at = words[at], at + 1
            values = []
            while at < len(words) and not words[at].startswith("-"):
                values.append(words[at])
                at += 1
            if option in fields:
                setattr(rule, fields[option], values[0])
            elif option == "-m":
                extension = rule.create_match(values[0])
            elif option in ("-j", "-g"):
                extension = rule.target = self._iptc.Target(rule, values[0], goto=option == "-g")
            else:
                extension.set_parameter(
                    option.removeprefix("--"), values if len(values) > 1 else "".join(values)
                )
        return rule

    def save(self, counters: bool = False) -> str:
        return "\n".join(line for name in _TABLES for line in self._saved(name, counters))

    def _saved(self, name: str, counters: bool) -> "Iterator[str]":
        table = self._open(name)
        yield f"*{name}"
        chains = sorted(table.chains, key=lambda chain: (not chain.is_builtin(), chain.name))
        for chain in chains:
            yield f":{chain.name} {'ACCEPT' if chain.is_builtin() else '-'} [0:0]"
        for chain in chains:
            for rule in chain.rules:
                packets = "[{}:{}] ".format(*rule.get_counters()) if counters else ""
                yield f"{packets}-A {chain.name}{self._printed(rule)}"
        yield "COMMIT"

    def _printed(self, rule: "Any") -> str:
        parts = []
        for option, value in (("-s", rule.src), ("-d", rule.dst)):
            prefix = _prefix(value)
            parts += [option, prefix] if not prefix.endswith("/0") else []
        for option, value in (("-i", rule.in_interface), ("-o", rule.out_interface)):
            parts += [option, value] if value else []
        parts += ["-p", rule.protocol] if rule.protocol not in ("ip", "ipv6", "all") else []
        for match in rule.matches:
            parts += ["-m", match.name, *_options(match)]
        if rule.target is not None:
            parts += ["-g" if rule.target.goto else "-j", rule.target.name, *_options(rule.target)]
        return "".join(f" {part}" for part in parts)


def _options(extension: "Any") -> "Iterator[str]":
    for name, values in extension.get_all_parameters().items():
        yield f"--{name}"
        for value in values:
            yield f'"{value}"' if " " in value else value


def _prefix(text: str) -> str:
    address, _, mask = text.partition("/")
    if "." in mask:
        bits = "".join(f"{int(byte):08b}" for byte in mask.split("."))
        return f"{address}/{bits.count('1')}"
    return text
