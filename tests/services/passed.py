"""A server on a Unix socket, whose connections other processes serve: passed.py PATH NEXT MODE.

`accept`: one process accepts, and passes each connection on (SCM_RIGHTS). `read`: it reads the
request, too, and passes that on with it. The workers call http://127.0.0.1:NEXT, and answer.
"""

import http.client
import os
import signal
import socket
import sys

PATH, NEXT, MODE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
WORKERS = 8


def head_of(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read:
        more = connection.recv(4096)
        if not more:
            break
        read += more
    return read


def serve(connection: socket.socket, head: bytes) -> None:
    words = head.split(b" ", 2)
    if len(words) == 3:
        onward = http.client.HTTPConnection("127.0.0.1", NEXT)
        onward.request("GET", words[1].decode())
        body = onward.getresponse().read()
        onward.close()
        said = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(said % len(body) + body)
    connection.close()


def work(jobs: socket.socket) -> None:
    while True:
        head, numbers, _, _ = socket.recv_fds(jobs, 65536, 1)
        if not numbers:
            return
        connection = socket.socket(fileno=numbers[0])
        serve(connection, head_of(connection) if MODE == "accept" else head)


ends = []
for _ in range(WORKERS):
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        mine.close()
        for end in ends:
            end.close()
        work(other)
        os._exit(0)
    other.close()
    ends.append(mine)
listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
listener.listen(512)
turn = 0
while True:
    connection, _ = listener.accept()
    head = b"x" if MODE == "accept" else head_of(connection)
    if head:
        socket.send_fds(ends[turn % WORKERS], [head], [connection.fileno()])
        turn += 1
    connection.close()
