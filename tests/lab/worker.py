"""The process inside a network namespace: it makes the namespace, dials from it and listens in it.

Run as `python -IS worker.py FD [uid-map]`; it reads one JSON request a line from the socket FD and answers with one
JSON line. The namespace lives as long as this process, and this process no longer than the one that started it.
Every listener tells its client what it saw (a JSON line on TCP, the answering datagram on UDP), so one dial gives
both ends' view. Not imported by any test, and imports only the standard library: it starts in 30 ms.

Long because one file is one process: a second one could not be found without a search path.
"""

import ctypes
import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import traceback
from typing import Any

Request = dict[str, Any]
Answer = Any

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
SIGKILL = 9
# linux/in.h, in6.h, netfilter_ipv4.h, tcp.h: the ones Python's socket module has no name for.
IP_TRANSPARENT = 19
SO_ORIGINAL_DST = 80
IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
TCPI_OPT_SYN_DATA = 32
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IP_PKTINFO = 8
FIN_ACK = 0x11
KEEP = ctypes.c_uint(0xFFFFFFFF)
# asm/unistd.h of x86-64, and asm-generic/unistd.h of the others.
SYS_SETRESUID, SYS_SETRESGID = (117, 119) if os.uname().machine == "x86_64" else (147, 149)
RST = 0x04

libc = ctypes.CDLL(None, use_errno=True)


def call(result: int) -> None:
    """Raise OSError for a libc call that returned -1."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Owner:
    """Be the uid and gid of `spec`, really and effectively, and become root again.

    xt_owner and nft's skuid read who opened the socket, BPF programs who connects: so a client is its owner in
    both. The raw system calls are per thread, where libc's would change the farm too.
    """

    def __init__(self, spec: Request) -> None:
        self.uid, self.gid = spec.get("uid", 0), spec.get("gid", 0)

    def __enter__(self) -> None:
        if self.uid or self.gid:
            call(libc.syscall(SYS_SETRESGID, ctypes.c_uint(self.gid), ctypes.c_uint(self.gid), KEEP))
            call(libc.syscall(SYS_SETRESUID, ctypes.c_uint(self.uid), ctypes.c_uint(self.uid), KEEP))

    def __exit__(self, *_: object) -> None:
        if self.uid or self.gid:
            call(libc.syscall(SYS_SETRESUID, 0, 0, KEEP))
            call(libc.syscall(SYS_SETRESGID, 0, 0, KEEP))


def open_socket(spec: Request, kind: int, protocol: int = 0) -> socket.socket:
    """Make a socket that belongs to the uid and gid of `spec`."""
    v6 = spec.get("mapped") or ":" in spec.get("to", "") or spec.get("family") == 6
    with Owner(spec):
        return socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind, protocol)


def name(address: Any) -> list[Any] | None:
    """Return a socket address as [text, port], scope and flow dropped."""
    return [address[0], address[1]] if address else None


def original_destination(conn: socket.socket, level: int) -> list[Any] | None:
    """Ask SO_ORIGINAL_DST at `level` (0 or 41); None when the kernel has no answer."""
    try:
        raw = conn.getsockopt(level, SO_ORIGINAL_DST, 28)
    except OSError:
        return None
    port = int.from_bytes(raw[2:4], "big")
    if level == 0:
        return [socket.inet_ntop(socket.AF_INET, raw[4:8]), port]
    return [socket.inet_ntop(socket.AF_INET6, raw[8:24]), port]


class Farm(threading.Thread):
    """All listeners of this namespace and the connections they accepted, on one epoll."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.listeners: dict[int, Request] = {}

    def listen(self, spec: Request) -> None:
        """Open `spec`: protocol, family, port, and optionally address, uid, gid, transparent, reuseport, tag."""
        tcp = spec["protocol"] == "tcp"
        sock = open_socket(spec, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec.get("transparent"):
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        if spec.get("reuseport"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if spec["family"] == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if spec.get("dual") else 1)
        sock.bind((spec.get("address") or ("::" if spec["family"] == 6 else "0.0.0.0"), spec["port"]))
        if tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
            sock.listen(128)
        elif spec["family"] == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setblocking(False)
        self.listeners[sock.fileno()] = spec
        self.watch(sock)

    def unlisten(self, port: int, tag: str = "") -> None:
        """Close every listener of `port`, or those of a tag alone."""
        for fd, spec in list(self.listeners.items()):
            if spec["port"] == port and tag in ("", spec.get("tag")):
                del self.listeners[fd]
                self.forget(fd)

    def watch(self, sock: socket.socket) -> None:
        self.sockets[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, fd: int) -> None:
        sock = self.sockets.pop(fd, None)
        if sock:
            self.epoll.unregister(fd)
            sock.close()

    def run(self) -> None:
        while True:
            for fd, _ in self.epoll.poll():
                sock = self.sockets.get(fd)
                if sock:
                    try:
                        self.serve(fd, sock)
                    except BlockingIOError:
                        pass
                    except OSError:
                        # A listener outlives a peer's error (ICMP on UDP, an aborted accept); a connection does not.
                        if fd not in self.listeners:
                            self.forget(fd)

    def serve(self, fd: int, sock: socket.socket) -> None:
        spec = self.listeners.get(fd)
        if spec is None:
            data = sock.recv(4096)
            if data:
                sock.send(data)
            else:
                self.forget(fd)
        elif spec["protocol"] == "tcp":
            conn, peer = sock.accept()
            conn.setblocking(False)
            self.watch(conn)
            conn.send(json.dumps(self.tcp_view(spec, conn, peer)).encode() + b"\n")
        else:
            self.answer_datagram(spec, sock)

    def tcp_view(self, spec: Request, conn: socket.socket, peer: Any) -> Request:
        own = conn.getsockname()
        return {
            "port": spec["port"],
            "tag": spec.get("tag", ""),
            "original": original_destination(conn, 41 if spec["family"] == 6 else 0),
            "original_v4": original_destination(conn, 0),
            "at": name(own),
            "peer": name(peer),
        }

    def answer_datagram(self, spec: Request, sock: socket.socket) -> None:
        """Answer from the address the datagram was sent to, as a DNS server with many addresses has to."""
        _, controls, _, peer = sock.recvmsg(4096, 256)
        at, out = None, []
        for level, kind, data in controls:
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                at = socket.inet_ntop(socket.AF_INET, data[8:12])
                out = [(level, kind, struct.pack("i4s4s", 0, data[8:12], bytes(4)))]
            elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
                at = socket.inet_ntop(socket.AF_INET6, data[:16])
                out = [(level, kind, data[:16] + bytes(4))]
        view = {
            "port": spec["port"],
            "tag": spec.get("tag", ""),
            "at": [at, spec["port"]],
            "peer": name(peer),
        }
        sock.sendmsg([json.dumps(view).encode()], out, 0, peer)


class Dial:
    """One client socket: to (address), port, protocol, and what makes it special; see tests.lab.topology.Dial."""

    def __init__(self, spec: Request) -> None:
        self.spec = spec
        self.tcp = spec["protocol"] == "tcp"
        self.target: tuple[str, int] = (("::ffff:" if spec.get("mapped") else "") + spec["to"], spec["port"])
        self.buffer = b""
        kind = socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM
        self.sock = open_socket(spec, kind, IPPROTO_MPTCP if spec.get("mptcp") else 0)
        self.sock.settimeout(spec["timeout"])
        if spec.get("source") or spec.get("source_port"):
            self.bind()
        if spec.get("device"):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec["device"].encode())
        if spec.get("mark"):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, spec["mark"])
        if spec.get("fastopen"):
            self.sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)

    def bind(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.spec.get("foreign"):
            self.sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        wildcard = "::" if self.sock.family == socket.AF_INET6 else "0.0.0.0"
        self.sock.bind((self.spec.get("source") or wildcard, self.spec.get("source_port", 0)))

    def talk(self) -> Request:
        """Connect, hear the listener's view, and return both ends' views."""
        try:
            with Owner(self.spec):
                view = self.meet_tcp() if self.tcp else self.meet_udp()
        except TimeoutError:
            return {"result": "timeout"}
        except ConnectionRefusedError:
            return {"result": "refused"}
        except OSError as error:
            return {"result": errno.errorcode.get(error.errno or 0, str(error))}
        view.setdefault("peername", name(self.sock.getpeername()) if self.connected else None)
        return {**view, "result": "connected", "sockname": name(self.sock.getsockname())}

    @property
    def connected(self) -> bool:
        return self.tcp or not self.spec.get("unconnected")

    def meet_tcp(self) -> Request:
        if self.spec.get("nonblocking"):
            self.connect_without_blocking()
        else:
            self.sock.connect(self.target)
        if self.spec.get("fastopen"):
            self.sock.send(b"early\n")
        view: Request = json.loads(self.line())
        if self.spec.get("fastopen"):
            options = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
            view |= {"echo": self.line().decode(), "syn_data": bool(options & TCPI_OPT_SYN_DATA)}
        return view

    def connect_without_blocking(self) -> None:
        self.sock.setblocking(False)
        code = self.sock.connect_ex(self.target)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        timeout = self.spec["timeout"]
        if not select.select([], [self.sock], [], timeout)[1]:
            raise TimeoutError
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self.sock.settimeout(timeout)

    def meet_udp(self) -> Request:
        if self.spec.get("unconnected"):
            self.sock.sendto(b"ask", self.target)
            data, peer = self.sock.recvfrom(4096)
            return {**json.loads(data), "peername": name(peer)}
        self.sock.connect(self.target)
        try:
            self.sock.send(b"ask")
        except PermissionError:
            # So the kernel tells a sender whose packet was rejected on its way out; the ICMP error follows.
            pass
        answer: Request = json.loads(self.sock.recv(4096))
        return answer

    def line(self) -> bytes:
        while b"\n" not in self.buffer:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the listener")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def echo(self) -> str:
        """Say whether the connection still carries data both ways."""
        try:
            self.sock.send(b"still there\n")
            answer = self.line() if self.tcp else self.sock.recv(4096)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "timeout")
        return "alive" if answer else "closed"

    def close(self) -> None:
        """Close with a reset: nothing stays in TIME_WAIT, and conntrack forgets the connection."""
        if self.tcp:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Worker:
    """The requests this process answers: every public method is one."""

    def __init__(self) -> None:
        self.farm = Farm()
        self.open: dict[int, Dial] = {}
        self.farm.start()

    def listen(self, specs: list[Request]) -> None:
        for spec in specs:
            self.farm.listen(spec)

    def unlisten(self, port: int, tag: str = "") -> None:
        self.farm.unlisten(port, tag)

    def sysctl(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            with open(f"/proc/sys/{key}", "w") as file:
                file.write(value)

    def dial(self, specs: list[Request]) -> list[Request]:
        """Dial each of `specs` and close; one answer each."""
        answers = []
        for spec in specs:
            dial = Dial(spec)
            try:
                answers.append(dial.talk())
            finally:
                dial.close()
        return answers

    def hold(self, spec: Request) -> Request:
        """Dial and keep the connection; its handle is in the answer."""
        dial = Dial(spec)
        answer = dial.talk()
        handle = dial.sock.fileno()
        self.open[handle] = dial
        return {**answer, "handle": handle}

    def echo(self, handle: int) -> str:
        return self.open[handle].echo()

    def release(self, handle: int) -> None:
        self.open.pop(handle).close()

    def stray_fin(self, source: str, to: str, port: int) -> str:
        """Send a FIN of no connection from `source`; "reset" if the other stack answers it, else "silence"."""
        v6 = ":" in to
        family = socket.AF_INET6 if v6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.bind((source, 0))
            raw.settimeout(0.5)
            segment = struct.pack("!HHIIBBHHH", 40999, port, 1, 1, 0x50, FIN_ACK, 1024, 0, 0)
            ends = socket.inet_pton(family, source) + socket.inet_pton(family, to)
            pseudo = ends + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
            total = sum(struct.unpack(f"!{len(pseudo + segment) // 2}H", pseudo + segment))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            raw.sendto(segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:], (to, 0))
            try:
                while True:
                    answer = raw.recv(4096)
                    tcp = answer if v6 else answer[(answer[0] & 15) * 4 :]
                    if tcp[2:4] == segment[:2] and tcp[13] & RST:
                        return "reset"
            except TimeoutError:
                return "silence"

    def forget_flows(self) -> None:
        """Flush this namespace's conntrack: IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK without a tuple."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            netlink.send(struct.pack("=IHHIIBBH", 20, 0x0102, 0x5, 1, 0, 0, 0, 0))
            netlink.recv(4096)


def enter_new_namespaces(channel: socket.socket, user: bool) -> None:
    """Unshare the user namespace (the starter writes its maps in between) and the network namespace."""
    if user:
        call(libc.unshare(CLONE_NEWUSER))
        channel.sendall(b"map me\n")
        channel.recv(16)
        os.setgid(0)
        os.setuid(0)
    call(libc.unshare(CLONE_NEWNET))


def main() -> None:
    """Serve requests until the starter goes away."""
    call(libc.prctl(PR_SET_PDEATHSIG, SIGKILL))
    channel = socket.socket(fileno=int(sys.argv[1]))
    enter_new_namespaces(channel, user="user" in sys.argv[2:])
    worker = Worker()
    stream = channel.makefile("rw", encoding="utf-8")
    stream.write("ready\n")
    stream.flush()
    for line in stream:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(worker, request.pop("do"))(**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


main()
