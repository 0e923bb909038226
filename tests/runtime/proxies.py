"""Two other real proxies that ask the kernel for the original destination: HAProxy and squid.

Both ask at level SOL_IP only, so they serve IPv4. Not the sidecar of the demo: `envoy` is.
"""

import os
from typing import IO

from tests.runtime.envoy import OUTBOUND
from tests.runtime.node import PROXY, Netns, until

HAPROXY = f"""\
global
    log stdout format raw local0
defaults
    mode tcp
    timeout connect 2s
    timeout client 5s
    timeout server 5s
    log global
    log-format "%[src] %[dst]:%[dst_port]"
frontend outbound
    bind :{OUTBOUND}
    default_backend as-dialled
backend as-dialled
    server original 0.0.0.0:0
"""

# squid insists on one port that is not intercepted.
SQUID = f"""\
http_port {OUTBOUND} intercept
http_port 3128
http_access allow all
cache deny all
logformat seen %>a %<a:%<p %Sh
access_log stdio:{{home}}/access.log seen
cache_log {{home}}/cache.log
coredump_dir {{home}}
pid_filename none
netdb_filename none
pinger_enable off
visible_hostname squid.test
"""


class HAProxy:
    """HAProxy on the outbound port, passing TCP on to where it was going."""

    def __init__(self, pod: Netns, directory: str) -> None:
        config = os.path.join(directory, "haproxy.cfg")
        with open(config, "w", encoding="utf-8") as file:
            file.write(HAPROXY)
        process = pod.start("haproxy", "-db", "-f", config, uid=PROXY)
        assert process.stdout
        self._log: IO[str] = process.stdout
        until(lambda: process.poll() is not None or pod.listening(OUTBOUND), "HAProxy to listen")
        assert process.poll() is None, self._log.read()

    def seen(self) -> str:
        """Return the next line of its log: client, original destination."""
        return self._log.readline().strip()


class Squid:
    """squid on the outbound port, intercepting HTTP."""

    def __init__(self, pod: Netns, directory: str) -> None:
        home = os.path.join(directory, "squid")
        os.mkdir(home)
        os.chown(home, PROXY, PROXY)
        config = os.path.join(directory, "squid.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(SQUID.format(home=home))
        self._log = os.path.join(home, "access.log")
        said = os.path.join(home, "output")
        with open(said, "w", encoding="utf-8") as output:
            process = pod.start("squid", "-N", "-f", config, uid=PROXY, output=output)
        until(lambda: process.poll() is not None or pod.listening(OUTBOUND), "squid to listen")
        with open(said, encoding="utf-8") as file:
            assert process.poll() is None, file.read()

    def seen(self) -> str:
        """Return the first line of its log: client, server it went to, how it knew the server."""

        def line() -> str:
            with open(self._log, encoding="utf-8") as file:
                return file.readline().strip()

        return str(until(line, "a line in squid's log"))
