"""An event loop on select: PORT UPSTREAM. It writes a call one tick after it has connected for it.

Requests come in pairs, /a/N and then /b/N, on two connections. The tick that
reads /a/N connects to UPSTREAM for it; the one that reads /b/N writes the call for /a/N, and
connects for /b/N.
"""

import select
import socket
import sys


def connect() -> socket.socket:
    upstream = socket.socket()
    upstream.setblocking(False)
    upstream.connect_ex(("127.0.0.1", int(sys.argv[2])))
    return upstream


def path(request: bytes) -> bytes:
    return request.split(b" ", 2)[1]


def call(upstream: socket.socket, target: bytes) -> None:
    upstream.sendall(b"GET %b HTTP/1.1\r\nHost: up\r\nConnection: close\r\n\r\n" % target)


def finish(upstream: socket.socket, client: socket.socket) -> None:
    upstream.setblocking(True)
    while upstream.recv(65536):
        pass
    upstream.close()
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
poll = select.epoll()
while True:
    clients = [listener.accept()[0] for _ in range(2)]
    poll.register(clients[0], select.EPOLLIN)
    poll.register(clients[1], select.EPOLLIN)
    while True:
        ((number, _),) = poll.poll(maxevents=1)
        first = next(one for one in clients if one.fileno() == number)
        if not (request := first.recv(65536)):
            break
        begun = connect()
        ((number, _),) = poll.poll(maxevents=1)
        second = next(one for one in clients if one.fileno() == number)
        other = second.recv(65536)
        call(begun, path(request))
        next_one = connect()
        poll.poll(timeout=0.02)
        call(next_one, path(other))
        poll.poll(timeout=0.02)
        finish(begun, first)
        finish(next_one, second)
    for one in clients:
        poll.unregister(one)
        one.close()
