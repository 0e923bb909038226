"""`mesh-redirect explain`: the decision, the effective redirection, its rules, and judged probes.

Not a check of a live pod: it reads what people and ADD wrote, and touches no netns. `live` does.
"""

import argparse
import json
import sys

from cni_plugin.backends import iptables, nft_text
from cni_plugin.backends.rules import ruleset
from cni_plugin.cli import files, live, probes, remarks, show
from cni_plugin.config import fields, netconf
from cni_plugin.kernel import state
from cni_plugin.mesh import dialect
from cni_plugin.model import parse, request, result
from cni_plugin.model.contract import outcome
from cni_plugin.model.decision import REDIRECT, RETRY, Decision
from cni_plugin.model.errors import INVALID_ENVIRONMENT, STATE_FAILED, UNKNOWN_CONTAINER, CniError, bad_field
from cni_plugin.model.redirection import Redirection, effective_families
from cni_plugin.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What annotations alone imply, when --args does not say: some pod of Kubernetes.
SOME_POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod"


class Case(Value):
    """What is explained: a decision, the pod's addresses, the IP versions, the backend in question.

    `refused` are the backends that could not be used, with their reasons; only a record knows them.
    `remarks` are about the netconf as it is written.
    """

    decision: Decision
    addresses: "list[bytes]"
    families: tuple[int, ...]
    backend: str
    refused: "dict[str, str]" = {}
    remarks: tuple[str, ...] = ()
    live: "dict[str, Any]" = {}


def run(options: argparse.Namespace) -> int:
    """Explain and print. Raises `CniError` or `OSError` for input that cannot be read."""
    if options.live:
        live.allowed(options.attachment)
    found = _recorded(options) if options.attachment else _decided(options)
    if options.backend:
        found = found.replace(backend=parse.choice("--backend", options.backend, netconf.BACKENDS))
    document = _document(found, options.probe)
    text = json.dumps(document, indent=2) + "\n" if options.json else show.text(document)
    sys.stdout.write(text)
    return 0


def _addresses(options: argparse.Namespace) -> "list[bytes]":
    return [parse.address("--ip", text) for text in options.ip]


def _recorded(options: argparse.Namespace) -> Case:
    """Return the case that ADD recorded under --state-dir."""
    if options.annotations or options.annotation or options.args is not None:
        raise CniError(INVALID_ENVIRONMENT, "--attachment: annotations and --args are for --netconf alone")
    container_id, _, ifname = options.attachment.partition(":")
    container_id = request.container_id("--attachment", container_id)
    ifname = request.interface("--attachment", ifname or "eth0")
    where = f"{container_id}:{ifname} in {options.state_dir}"
    try:
        record = state.load(options.state_dir, container_id, ifname)
        if record is None:
            raise CniError(UNKNOWN_CONTAINER, f"--attachment: no record of {where}")
        found = _from_record(record, _addresses(options))
        return (
            found.replace(live=live.seen(record, options.state_dir, options.bpffs)) if options.live else found
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CniError(STATE_FAILED, f"--attachment: the record of {where} is damaged: {error!r}") from None


def _from_record(record: "dict[str, Any]", addresses: "list[bytes]") -> Case:
    redirection = record["redirection"]
    decision = Decision(
        verdict=record["verdict"],
        reason=record["reason"],
        detail=record["detail"],
        mesh=record["mesh"],
        redirection=fields.from_json("redirection", redirection) if redirection else None,
        origins=record["origins"],
        unknown=tuple(record["unknown"]),
        warnings=tuple(record["warnings"]),
    )
    return Case(
        decision=decision,
        addresses=addresses,
        # Only an attachment with rules has these.
        families=tuple(record["families"]) if redirection else (),
        backend=record["backend"] if redirection else "",
        refused=record["refused"] if redirection else {},
    )


def _decided(options: argparse.Namespace) -> Case:
    """Return the case that ADD would decide, given this netconf and these facts."""
    document, said = files.plugin_object(options.netconf)
    conf = netconf.netconf(document)
    annotations = _annotations(options, conf.pod_annotations)
    conf = conf.replace(pod_annotations=annotations)
    text = options.args
    if text is None:
        text = SOME_POD if annotations is not None else ""
    addresses = _addresses(options) or result.addresses(conf.prev_result)
    decision = dialect.decide(conf, request.cni_args(text), addresses)
    families: tuple[int, ...] = ()
    if decision.redirection is not None:
        families = effective_families(decision.redirection, addresses)
    return Case(
        decision=decision,
        addresses=addresses,
        families=families,
        backend=conf.backends[0],
        remarks=(*said, *remarks.of_object(document), *remarks.of_annotations(conf.mesh, annotations or {})),
    )


def _annotations(options: argparse.Namespace, delivered: "dict[str, str] | None") -> "dict[str, str] | None":
    """Return the netconf's own annotations, those of --annotations over them, those of --annotation last."""
    given: dict[str, Any] = {}
    if options.annotations:
        given = files.json_object(options.annotations)
        for key, value in given.items():
            if not isinstance(value, str):
                expected = "a string: the file holds the pod's annotations alone, not the pod"
                raise bad_field(f"{options.annotations}: {key}", value, expected)
    for pair in options.annotation:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise bad_field("--annotation", pair, "KEY=VALUE", INVALID_ENVIRONMENT)
        given[key] = value
    if delivered is None and not options.annotations and not options.annotation:
        return None
    return {**(delivered or {}), **given}


def _document(found: Case, texts: list[str]) -> "dict[str, Any]":
    """Return all that is explained as one JSON object."""
    decision, redirection = found.decision, found.decision.redirection
    document: dict[str, Any] = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "detail": decision.detail,
        "mesh": decision.mesh,
        "unknown": list(decision.unknown),
        "warnings": [*decision.warnings, *found.remarks],
    }
    if decision.verdict == REDIRECT and redirection is not None:
        document["families"] = list(found.families)
        document["redirection"] = fields.to_json(redirection)
        document["origins"] = decision.origins
        document["backend"] = found.backend
        document["refused"] = found.refused
        document["rules"] = _rules(redirection, found.families, found.backend)
    if found.live:
        document["live"] = found.live
    document["probes"] = [_judged(found, text) for text in texts]
    return document


def _rules(redirection: Redirection, families: tuple[int, ...], backend: str) -> "dict[str, str]":
    """Return the rules in the backend's own syntax, by the address family they are loaded into."""
    if backend == "ebpf":
        return {}  # it has none: --live reads what its programs are told
    rules = ruleset(redirection, families)
    if backend == "nftables":
        return {"inet": nft_text.render(rules)}
    return {f"ipv{family}": iptables.render(rules, family) for family in families}


def _judged(found: Case, text: str) -> "dict[str, Any]":
    asked = probes.probe(text, found.addresses)
    redirection = found.decision.redirection
    if found.decision.verdict == REDIRECT and redirection is not None:
        judged = outcome(redirection, found.families, asked)
        return {
            "probe": text,
            "row": judged.row,
            "action": judged.action,
            "port": judged.port,
            "why": judged.why,
        }
    action, why = "pass", "Nothing of this pod is redirected"
    if found.decision.verdict == RETRY:
        action, why = "none", "The pod does not start yet"
    return {"probe": text, "row": "", "action": action, "port": 0, "why": f"{why}: {found.decision.detail}."}
