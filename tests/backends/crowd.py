"""Many clients at once, and a proxy that takes its time: processes in a pod's cgroup and netns, beside its worker.

`python -IS crowd.py surge` dials with 64 threads until its stdin ends and prints each connection's story;
`... serve` is the proxy and `... dial N` its clients: each sends the destination it dialled, so that the proxy can
judge even of those who are gone already what SO_ORIGINAL_DST says. Imported by no test.
"""

import errno
import json
import socket
import struct
import sys
import threading
import time
from typing import Any

THREADS = 64
OUTBOUND, SO_ORIGINAL_DST = 15001, 80
RESET = struct.pack("ii", 1, 0)
# What the lab's outside answers on, at any address.
TARGETS = [
    *((f"10.{net}.{host}.3", port) for net in (1, 2) for host in range(1, 24) for port in (80, 443, 8080)),
    *((f"2001:db8:{net}::{host:x}", port) for net in (1, 2) for host in range(3, 16) for port in (80, 9090)),
]
SOURCES = {socket.AF_INET: ("0.0.0.0", "10.50.0.2"), socket.AF_INET6: ("::", "fd00:50::2")}
BUSY = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def family_of(target: tuple[str, int]) -> socket.AddressFamily:
    """Return the family of an address."""
    return socket.AF_INET6 if ":" in target[0] else socket.AF_INET


def original(conn: socket.socket) -> tuple[str, int] | None:
    """Ask for the original destination; None when the kernel has no answer."""
    v6 = conn.family == socket.AF_INET6
    try:
        raw = conn.getsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, SO_ORIGINAL_DST, 28)
    except OSError:
        return None
    port = int.from_bytes(raw[2:4], "big")
    return socket.inet_ntop(conn.family, raw[8:24] if v6 else raw[4:8]), port


# -- 64 threads ------------------------------------------------------------------------------------


def story(target: tuple[str, int]) -> str:
    """Dial once and say who answered: proxy, unknown (a proxy that was not told whose), straight, or what went wrong."""
    with socket.socket(family_of(target), socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        try:
            sock.connect(target)
            line = sock.recv(4096)
        except OSError as error:
            return f"{type(error).__name__} {error} for {target}"
    view: dict[str, Any] = json.loads(line or b'{"tag": "closed", "port": 0}')
    if view["tag"] == "pod:" and view["port"] == OUTBOUND:
        if view["original"] in (None, view["at"]):
            return "unknown"
        return "proxy" if view["original"] == list(target) else f"{view['original']} for {target}"
    return "straight" if view["tag"] == "outside:" and view["at"] == list(target) else f"{view} for {target}"


def surge() -> None:
    """Dial with every thread until told to stop; print [begun, ended, story] of each connection."""
    stories: list[tuple[float, float, str]] = []
    stop = threading.Event()

    def run(turn: int) -> None:
        while not stop.is_set():
            turn += 1
            begun = time.monotonic()
            told = story(TARGETS[turn % len(TARGETS)])
            stories.append((begun, time.monotonic(), told))

    threads = [threading.Thread(target=run, args=(7 * number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(stories))


# -- 20,000 short connections ----------------------------------------------------------------------


def serve() -> None:
    """Be the proxy: accept in bursts, ask at once or after the client has long spoken; print what was wrong."""
    listeners = []
    for family in (socket.AF_INET, socket.AF_INET6):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", OUTBOUND))
        sock.listen(512)
        sock.setblocking(False)
        listeners.append(sock)
    stop = threading.Event()
    threading.Thread(target=lambda: stop.set() if not sys.stdin.read() else None, daemon=True).start()
    print("ready", flush=True)
    tally: dict[str, Any] = {"right": 0, "unheard": 0, "wrong": []}
    while True:
        # They queue up meanwhile, and some go again before they are accepted.
        time.sleep(0.003)
        burst = [conn for listener in listeners for conn in accept_all(listener)]
        asked = [original(conn) if number % 2 else None for number, conn in enumerate(burst)]
        for conn, early in zip(burst, asked, strict=True):
            judge(conn, early, tally)
        if not burst and stop.is_set():
            break
    print(json.dumps(tally))


def accept_all(listener: socket.socket) -> list[socket.socket]:
    """Accept all who wait."""
    burst = []
    try:
        while True:
            burst.append(listener.accept()[0])
    except BlockingIOError:
        return burst


def judge(conn: socket.socket, early: tuple[str, int] | None, tally: dict[str, Any]) -> None:
    """Compare what the kernel says with what the client says, and answer."""
    with conn:
        conn.settimeout(10)
        try:
            said = conn.recv(100).decode()
            late = original(conn)
        except OSError:
            said = ""
        if not said:
            tally["unheard"] += 1
            return
        host, port = said.split()
        if late == (host, int(port)) and early in (None, late):
            tally["right"] += 1
        else:
            tally["wrong"].append([said, early, late])
        try:
            conn.send(b"heard")
        except OSError:
            pass  # a client that did not wait


def dial(count: int) -> None:
    """Make `count` short connections from few ports, ended in every way there is; print what failed."""
    failed: list[str] = []

    def run(number: int, each: int) -> None:
        ports = range(20000 + 50 * number, 20050 + 50 * number)
        for turn in range(each):
            target = TARGETS[(turn * 5 + number) % len(TARGETS)]
            source = SOURCES[family_of(target)][turn % 3 == 0]
            try:
                one(target, source, ports, turn)
            except OSError as error:
                failed.append(f"{error} for {target}, turn {turn}")

    threads = [threading.Thread(target=run, args=(number, count // 16)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(failed))


def one(target: tuple[str, int], source: str, ports: range, turn: int) -> None:
    """Connect from the first of `ports` that the kernel gives, say whom, and leave in the way of this turn."""
    for step in range(len(ports)):
        sock = socket.socket(family_of(target), socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((source, ports[(turn // 2 + step) % len(ports)]))
            sock.connect(target)
            break
        except OSError as error:
            sock.close()
            if error.errno not in BUSY or step == len(ports) - 1:
                raise
    with sock:
        leave(sock, target, turn % 16)


def leave(sock: socket.socket, target: tuple[str, int], way: int) -> None:
    """End a connection: gone before anybody accepts (0, 1), half-closed (2), else by reset or after the proxy."""
    sock.send(f"{target[0]} {target[1]}".encode())
    if way == 0 and sock.family == socket.AF_INET6:
        # The kernel's own answer for a socket that is gone does not reach a peer at ::1 from another address.
        way = 1
    if way == 2:
        sock.shutdown(socket.SHUT_WR)
    if way > 1 and sock.recv(10) != b"heard":
        raise OSError("closed by the proxy")
    if way == 2 or way > 8:
        sock.recv(10)  # the proxy ends it
    elif way:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


if __name__ == "__main__":
    {"surge": surge, "serve": serve, "dial": lambda: dial(int(sys.argv[2]))}[sys.argv[1]]()
