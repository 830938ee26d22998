"""One thread that serves two connections in turn, and calls on: PORT NEXT_PORT.

GET PATH calls PATH of the next service. Each answer is one write of 4,000 bytes and a head.
"""

import http.client
import itertools
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n" + b"x" * 4000


def request(client: socket.socket) -> str:
    """The path of the next request, "" at the end."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = client.recv(4096)
        if not piece:
            return ""
        data += piece
    return data.split(b" ")[1].decode()


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for client in itertools.cycle([listener.accept()[0] for _ in range(2)]):
    path = request(client)
    if not path:
        break
    onward = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]))
    onward.request("GET", path)
    onward.getresponse().read()
    onward.close()
    client.sendall(ANSWER)
