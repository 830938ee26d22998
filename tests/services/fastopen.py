"""Client and server with TCP Fast Open: COUNT. Exits 1 if a request left after the SYN."""

import socket
import sys
import threading

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TCP_FASTOPEN, TCP_INFO, SYN_DATA = 23, 11, 32

listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)


def serve() -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            while b"\r\n\r\n" not in connection.recv(4096):
                pass
            connection.sendall(ANSWER)


def ask(path: str) -> bool:
    """Whether the request left with the SYN."""
    with socket.socket() as client:
        text = f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        client.sendto(text, socket.MSG_FASTOPEN, listener.getsockname())
        answer = b""
        while len(answer) < len(ANSWER):
            answer += client.recv(4096)
        options = client.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 8)[5]
        return bool(options & SYN_DATA)


threading.Thread(target=serve, daemon=True).start()
ask("/cookie")
sys.exit(not all(ask(f"/fast/{number}") for number in range(int(sys.argv[1]))))
