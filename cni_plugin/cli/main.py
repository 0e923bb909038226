"""The command line: which words there are and who answers them.

Not the answers: each command's work is in the module of its name. Never on the runtime's path.
"""

import argparse
import os
import sys

from cni_plugin import __version__
from cni_plugin.cli import explain
from cni_plugin.model.errors import CniError

PROBE = (
    'a connection to judge, repeatable: [in|out] KEY=VALUE..., for instance "uid=1000 dst=10.1.2.3:443" or '
    '"in src=10.9.8.7 port=8080"; keys: dst (ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT), src, port, uid, gid, '
    "proto (tcp or udp), if (interface)"
)


def main(arguments: list[str]) -> int:
    """Run one command; return its exit code: 0, 1 for what was checked and is wrong, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except CniError as error:
        sys.stderr.write(f"mesh-redirect: {error.msg}\n")
        return 2
    except BrokenPipeError:
        # Whoever reads has seen enough; without this Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        sys.stderr.write(f"mesh-redirect: {error.filename or ''}: {error.strerror}\n")
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mesh-redirect",
        description="A chained CNI plugin that puts a pod's traffic through its sidecar proxy. "
        "A runtime starts it with CNI_COMMAND in the environment; these are the commands for people.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _explain(commands.add_parser("explain", help="say what is done for a pod, why, and with which rules"))
    configs = commands.add_parser("config", help="check a netconf, or print its schema")
    words = configs.add_subparsers(metavar="COMMAND", required=True)
    check = words.add_parser("check", help="check a netconf or a conflist")
    check.add_argument("file", metavar="FILE", help="a plugin object or a conflist; - is stdin")
    check.set_defaults(run=_check)
    words.add_parser("schema", help="print the netconf's JSON Schema").set_defaults(run=_schema)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return parser


def _explain(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--netconf", metavar="FILE", help="a plugin object or a conflist; - is stdin")
    source.add_argument(
        "--attachment", metavar="CONTAINERID[:IFNAME]", help="what ADD recorded; IFNAME: eth0"
    )
    parser.add_argument(
        "--annotations", metavar="FILE", help="the pod's annotations, a JSON object; - is stdin"
    )
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[], help="repeatable")
    parser.add_argument(
        "--args", metavar="K=V;K=V", help="CNI_ARGS, for instance K8S_POD_NAME=a;K8S_POD_NAMESPACE=b"
    )
    parser.add_argument("--ip", metavar="ADDRESS", action="append", default=[], help="the pod's, repeatable")
    parser.add_argument("--state-dir", metavar="DIR", default="/run/mesh-redirect", help="for --attachment")
    parser.add_argument("--live", action="store_true", help="and what the kernel holds of the attachment now")
    parser.add_argument("--bpffs", metavar="DIR", default="/sys/fs/bpf", help="for --live; the netconf's")
    parser.add_argument(
        "--backend", metavar="NAME", help="whose rules to print; default: the first that is preferred"
    )
    parser.add_argument("--probe", metavar="TEXT", action="append", default=[], help=PROBE)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=explain.run)


def _check(options: argparse.Namespace) -> int:
    from cni_plugin.cli import config  # noqa: PLC0415 - pydantic, which takes longer than all of explain

    return config.check(options)


def _schema(options: argparse.Namespace) -> int:
    from cni_plugin.cli import config  # noqa: PLC0415 - same

    return config.schema(options)


def _version(_: argparse.Namespace) -> int:
    print(f"mesh-redirect {__version__}")
    return 0
