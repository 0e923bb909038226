"""An application and its client, small enough to be handed to `python -c` inside a sandbox.

Not imported by tests: it runs as another user, who may not be able to read this tree. Say
`serve NAME PORT` (both families, HTTP) or `call ADDRESS PORT TIMEOUT`; one JSON object is printed per line.
"""

import json
import socket
import sys
import threading


def read_head(conversation: socket.socket) -> str:
    """Return everything up to the blank line that ends an HTTP head, or up to the end."""
    head = b""
    while b"\r\n\r\n" not in head and (piece := conversation.recv(4096)):
        head += piece
    return head.decode("latin-1")


def answer(name: str, conversation: socket.socket) -> None:
    """Tell the caller who we are and whom we see."""
    with conversation:
        read_head(conversation)
        body = json.dumps({"server": name, "client": conversation.getpeername()[0].removeprefix("::ffff:")})
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        conversation.sendall((head + body).encode())


def serve(name: str, port: int) -> None:
    """Answer on every address, IPv4 and IPv6, until killed."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    print(json.dumps({"serving": port}), flush=True)
    while True:
        conversation, _ = listener.accept()
        threading.Thread(target=answer, args=(name, conversation), daemon=True).start()


def call(address: str, port: int, timeout: float) -> dict[str, object]:
    """Ask once; say what became of it, and what the socket says about its ends."""
    try:
        with socket.create_connection((address, port), timeout) as conversation:
            ends = {"peer": conversation.getpeername()[:2], "own": conversation.getsockname()[:2]}
            conversation.sendall(
                f"GET / HTTP/1.1\r\nhost: [{address}]:{port}\r\nconnection: close\r\n\r\n".encode()
            )
            head = read_head(conversation)
            head, _, rest = head.partition("\r\n\r\n")
            while piece := conversation.recv(4096):
                rest += piece.decode()
    except ConnectionRefusedError:
        return {"outcome": "refused"}
    except ConnectionResetError:
        return {"outcome": "reset"}
    except TimeoutError:
        return {"outcome": "timed out"}
    if not rest:
        return {"outcome": "closed", **ends}
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    return {"outcome": "answered", **ends, "headers": headers, "body": json.loads(rest)}


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]))
else:
    print(json.dumps(call(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
