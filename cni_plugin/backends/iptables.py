"""Backend `iptables`: the same rules in xtables, one commit for each table, both families or neither.

Not an applier: `xtables` has two, python-iptables and iptables-restore, and both take the text made here.
Text is in the form that iptables-save prints, so that what was put in and what is read back compare.
Long because making the text, reading it back and comparing the two are one grammar.
"""

from cni_plugin.backends import routes, xtables
from cni_plugin.backends.common import NO_RECORD, WHY, InNamespace
from cni_plugin.backends.rules import Chain, Rule, Ruleset, Set, Verdict, ruleset
from cni_plugin.kernel.process import Failed
from cni_plugin.model.parse import address_text, prefix_text
from cni_plugin.model.redirection import Redirection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Never renamed: an upgrade must find what an older version installed. 28 characters at most with a chain's
# name (linux/netfilter/x_tables.h, XT_EXTENSION_MAXNAMELEN, less its NUL).
PREFIX = "MESH_REDIRECT_"
# nat last: its chains are what captures, and nothing is captured by half a ruleset.
TABLES = ("raw", "mangle", "filter", "nat")
_HOOKS = ("prerouting", "input", "forward", "output")
# One multiport match holds this many ports, a range counting twice (linux/netfilter/xt_multiport.h).
_MULTIPORT = 15


class Iptables(InNamespace):
    """The backend; every method works in the network namespace the process is in."""

    name = "iptables"

    def __init__(self, cache_dir: str, applier: "xtables.Applier | None" = None) -> None:
        self._cache_dir = cache_dir
        self._chosen = applier

    def _applier(self) -> "xtables.Applier":
        if self._chosen is None:
            self._chosen = xtables.choose(self._cache_dir)
        return self._chosen

    def probe(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Raise `Unsupported` if nothing here can write iptables rules."""
        self._applier()

    def add(self, redirection: Redirection, families: tuple[int, ...]) -> None:
        """Replace what is there. Raises `Unsupported` or `OSError`; what was there before is back then."""
        rules = ruleset(redirection, families)
        undo = routes.add(redirection, families)
        try:
            self._replace({family: lines(rules, family) if family in families else {} for family in (4, 6)})
        except BaseException:
            undo()
            raise

    def check(self, redirection: Redirection, families: tuple[int, ...]) -> "list[str]":
        """Return what is missing, added or changed, a line each."""
        rules = ruleset(redirection, families)
        differences = []
        for family in (4, 6):
            wanted = lines(rules, family) if family in families else {}
            found = self._read(family)
            if found != wanted:
                # Another version may print the same rules in other words: let it print what is wanted.
                printed = self._applier().reprinted(family, _text({}, wanted))
                differences += _differences(family, ours(printed), found)
        return differences + routes.check(redirection, families)

    def counters(self) -> "dict[str, int]":
        """Return how often each row decided since the last `add`."""
        from cni_plugin.backends import hits  # noqa: PLC0415 - for people, never on the runtime's path

        found: list[tuple[str, str, int]] = []
        for family in (4, 6):
            if xtables.in_use(family):
                found += _counted(self._applier().save(family, counters=True), hits.DECIDING)
        return hits.tally(found)

    def delete(
        self,
        redirection: Redirection = NO_RECORD,
        kept: Redirection | None = None,
        families: tuple[int, ...] = (),
    ) -> None:
        """Remove everything of ours but the routes that `kept` needs. Raises `OSError`."""
        self._replace({4: {}, 6: {}})
        routes.delete(redirection, kept, families)

    def _read(self, family: int) -> "dict[str, list[str]]":
        # A namespace without tables costs no child; asking for a table would make it.
        return ours(self._applier().save(family)) if xtables.in_use(family) else {}

    def _replace(self, wanted: "dict[int, dict[str, list[str]]]") -> None:
        """Commit `wanted` for its families at the same time; if one fails, put both back."""
        before = {family: self._read(family) for family in wanted}
        changing = [family for family in wanted if wanted[family] or before[family]]
        if not changing:
            return
        applier = self._applier()
        started = [
            (family, applier.restore(family, _text(before[family], wanted[family]))) for family in changing
        ]
        failures = []
        for family, child in started:
            try:
                child.wait()
            except Failed as failure:
                failures.append(f"IPv{family}: {failure}")
        if failures:
            for family in changing:
                xtables.waited(applier.restore(family, _text(self._read(family), before[family])))
            raise OSError("; ".join(failures))


def with_clones(rules: Ruleset) -> Ruleset:
    """Return `rules` so that tproxy without a listener is a refusal: xt_TPROXY drops, and the client hangs.

    A SYN is cloned before TPROXY takes it (xt_TEE). The clone comes back by loopback after the SYN was
    delivered. Is there a transparent socket for it by then, the proxy listens and the clone is dropped; is
    there none, the clone is answered with a reset, which the client takes for its SYN's.
    """
    leaves = [chain.rules[0].verdict for chain in rules.chains if chain.name == "to_proxy"]
    if not leaves:
        return rules
    # Marks: tproxy_mark, then that of the proxy's own calls (rules.self_mark), then the clones'.
    clone = int(leaves[0][2]) + 2
    seen = Rule(row="clone", iif="lo", protocol="tcp", mark=clone, transparent=True, verdict=("drop",))
    reset = Rule(row="clone", iif="lo", protocol="tcp", mark=clone, verdict=("reset",))
    chains = [Chain(name="filter_input", table="filter", hook="input", rules=(reset,))]
    for chain in rules.chains:
        if chain.name == "inbound":
            chains.append(chain.replace(rules=(seen, *chain.rules)))
        elif chain.name == "to_proxy":
            steps = (("mark", clone), ("tee",), leaves[0])
            chains.append(chain.replace(rules=tuple(chain.rules[0].replace(verdict=step) for step in steps)))
        else:
            chains.append(chain)
    return rules.replace(chains=tuple(chains))


# -- text ------------------------------------------------------------------------------------------


def render(rules: Ruleset, family: int) -> str:
    """Return what iptables-restore --noflush is given for `family` in a namespace that has none of ours."""
    return _text({}, lines(rules, family))


def lines(rules: Ruleset, family: int) -> "dict[str, list[str]]":
    """Return, for each table, chains and rules as iptables-save prints them, chains by name."""
    rules = with_clones(rules)
    found: dict[str, list[str]] = {}
    for table in TABLES:
        chains = sorted(
            (chain for chain in rules.chains if chain.table == table),
            key=lambda chain: chain_name(chain.name),
        )
        body = [line for chain in chains for line in _chain(chain, family)]
        if body:
            hooks = [
                f"-A {hook.upper()} -j {chain_name(chain.name)}"
                for hook in _HOOKS
                for chain in chains
                if chain.hook == hook
            ]
            found[table] = [*(f":{chain_name(chain.name)} - [0:0]" for chain in chains), *hooks, *body]
    return found


def chain_name(name: str) -> str:
    """Return the chain's name in its table; nat_output is MESH_REDIRECT_OUTPUT of table nat."""
    table, _, rest = name.partition("_")
    return PREFIX + (rest if table in TABLES else name).upper()


def _chain(chain: Chain, family: int) -> "Iterator[str]":
    for rule in chain.rules:
        if rule.family in (0, family) and not rule.wildcard:
            for condition in _conditions(rule):
                yield f"-A {chain_name(chain.name)}{condition} {_verdict(rule.verdict, family)}"


def _conditions(rule: Rule) -> "Iterator[str]":
    """Yield the rule's conditions once for every combination of what one rule can hold only one of."""
    interfaces = (f" -i {rule.iif}" if rule.iif else "") + (f" -o {rule.oif}" if rule.oif else "")
    protocol = f" -p {rule.protocol}" if rule.protocol else ""
    comment = f' -m comment --comment "{rule.row} {WHY[rule.row]}"'
    for source in _addresses(" -s", rule.source):
        for destination in _addresses(" -d", rule.destination):
            packet = source + destination + interfaces + protocol + comment
            for port in _ports(rule):
                for owner in _owners(rule):
                    yield packet + port + owner + _socket_state(rule)


def _addresses(option: str, members: Set | None) -> "Iterable[str]":
    return [""] if members is None else [f"{option} {prefix_text(prefix)}" for prefix in members.prefixes]


def _ports(rule: Rule) -> "Iterator[str]":
    syn = " --tcp-flags FIN,SYN,RST,ACK SYN" if rule.syn else ""
    if rule.port is None:
        yield f" -m tcp{syn}" if syn else ""
    elif len(rule.port.spans) == 1:
        yield f" -m {rule.protocol} --dport {_span(rule.port.spans[0], ':')}{syn}"
    else:
        for chunk in _multiports(rule.port.spans):
            yield f" -m multiport --dports {chunk}" + (f" -m tcp{syn}" if syn else "")


def _multiports(spans: "tuple[tuple[int, int], ...]") -> "Iterator[str]":
    chunk: list[str] = []
    room = _MULTIPORT
    for span in spans:
        size = 1 if span[0] == span[1] else 2
        if size > room:
            yield ",".join(chunk)
            chunk, room = [], _MULTIPORT
        chunk.append(_span(span, ":"))
        room -= size
    yield ",".join(chunk)


def _owners(rule: Rule) -> "Iterator[str]":
    members = rule.uid or rule.gid
    if members is None:
        yield ""
        return
    for span in members.spans:
        yield f" -m owner --{members.kind}-owner {_span(span, '-')}"


def _span(span: "tuple[int, int]", between: str) -> str:
    low, high = span
    return str(low) if low == high else f"{low}{between}{high}"


def _socket_state(rule: Rule) -> str:
    parts = []
    if rule.mark:
        parts.append(f" -m mark --mark {rule.mark:#x}")
    if rule.connmark:
        parts.append(f" -m connmark --mark {rule.connmark:#x}")
    if rule.invalid:
        parts.append(" -m conntrack --ctstate INVALID")
    if rule.local_source:
        parts.append(" -m addrtype --src-type LOCAL")
    if rule.local_destination:
        parts.append(" -m addrtype --dst-type LOCAL")
    if rule.transparent:
        parts.append(" -m socket --transparent")
    return "".join(parts)


def _verdict(verdict: Verdict, family: int) -> str:  # noqa: C901 - a table of the verdicts
    match verdict:
        case ("goto", str(chain)):
            return f"-g {chain_name(chain)}"
        case ("redirect", int(port)):
            return f"-j REDIRECT --to-ports {port}"
        case ("dnat", bytes(address), int(port)):
            text = address_text(address)
            return f"-j DNAT --to-destination {text if family == 4 else f'[{text}]'}:{port}"
        case ("tproxy", int(port), int(mark)):
            anywhere = "0.0.0.0" if family == 4 else "::"  # noqa: S104 - as iptables-save prints "no address"
            return f"-j TPROXY --on-port {port} --on-ip {anywhere} --tproxy-mark {mark:#x}/0xffffffff"
        case ("tee",):
            return f"-j TEE --gateway {'127.0.0.1' if family == 4 else '::1'}"
        case ("mark", int(mark)):
            return f"-j MARK --set-xmark {mark:#x}/0xffffffff"
        case ("zone", int(zone)):
            return f"-j CT --zone-orig {zone}"
        case ("save-mark" | "restore-mark" as name,):
            return f"-j CONNMARK --{name} --nfmask 0xffffffff --ctmask 0xffffffff"
        case ("reject",):
            return f"-j REJECT --reject-with icmp{'' if family == 4 else '6'}-port-unreachable"
        case ("reset",):
            return "-j REJECT --reject-with tcp-reset"
        case (str(name),):
            return f"-j {name.upper()}"
    raise ValueError(f"no such verdict: {verdict!r}")


# -- what is there ---------------------------------------------------------------------------------


def ours(saved: str) -> "dict[str, list[str]]":
    """Return, of what iptables-save printed, our chains, our rules and the jumps to them, by table."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(f":{PREFIX}"):
            found.setdefault(table, []).append(f"{line.partition(' ')[0]} - [0:0]")
        elif line.startswith("-A ") and f" {PREFIX}" in line:
            found.setdefault(table, []).append(line)
    return {table: found[table] for table in TABLES if table in found}


def _counted(saved: str, wanted: "dict[str, str]") -> "list[tuple[str, str, int]]":
    """Return (chain, comment, packets) of the rules of `wanted`, chains with their tables, from save -c."""
    chains = {(table, chain_name(name)): name for name, table in wanted.items()}
    found = []
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("["):
            counters, _, rule = line.partition("] -A ")
            chain = chains.get((table, rule.partition(" ")[0]))
            _, commented, rest = rule.partition(' --comment "')
            if chain and commented:
                found.append((chain, rest.partition('"')[0], int(counters[1:].partition(":")[0])))
    return found


def _text(before: "dict[str, list[str]]", after: "dict[str, list[str]]") -> str:
    """Return the restore text that turns `before` into `after`, each table in one commit."""
    text = []
    for table in TABLES:
        old, new = before.get(table, []), after.get(table, [])
        if old or new:
            text += [f"*{table}", *_removal(old), *new, "COMMIT"]
    return "\n".join([*text, ""])


def _removal(old: "list[str]") -> "list[str]":
    chains = [line[1:].partition(" ")[0] for line in old if line.startswith(":")]
    jumps = [
        f"-D{line[2:]}" for line in old if line.startswith("-A ") and not line.startswith(f"-A {PREFIX}")
    ]
    return [*jumps, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains)]


def _differences(family: int, wanted: "dict[str, list[str]]", found: "dict[str, list[str]]") -> "list[str]":
    differences = []
    for table in TABLES:
        old, new = wanted.get(table, []), found.get(table, [])
        left = list(new)
        for line in old:
            if line in left:
                left.remove(line)
            else:
                differences.append(f"IPv{family} table {table}: {line} is missing")
        differences += [f"IPv{family} table {table}: {line} is not ours" for line in left]
        if not differences and old != new:
            differences.append(f"IPv{family} table {table}: rules are not in their order")
    return differences
