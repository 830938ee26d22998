"""Threads that do each other's work, in a process whose main thread runs a known server.

Sixteen threads of two kinds, each kind with a queue. A thread reads a request, puts its call into
the queue of the other kind, makes a call from the queue of its own, and answers the request that it
has read with what another thread has got. They accept on PORT, and the known server, which makes no
call, on OTHER_PORT: Werkzeug's `run_simple`, or cheroot with the word `cheroot`. With the word
`share` both accept on PORT, and both call. With the word `after` the known server accepts on PORT
until it is asked for /end; then the main thread accepts there for such threads.
"""

import http.client
import os
import queue
import socket
import sys
import threading
from urllib.parse import urlsplit

from werkzeug.serving import make_server, run_simple

PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])
OTHER_PORT = int(os.environ.get("OTHER_PORT", "0"))
queues = [queue.Queue(), queue.Queue()]


def call(target):
    connection = http.client.HTTPConnection(BACKEND.netloc, timeout=10)
    connection.request("GET", f"/call?{target.partition('?')[2]}")
    body = connection.getresponse().read()
    connection.close()
    return body


def take(mine, other):
    """The next call; None where another thread has taken the last one."""
    for jobs, seconds in ((mine, 0.04), (other, 0)):
        try:
            return jobs.get(block=seconds > 0, timeout=seconds)
        except queue.Empty:
            continue
    return None


def swap(accept, number):
    mine, other = queues[number % 2], queues[(number + 1) % 2]
    while True:
        client = accept()
        head = b""
        while b"\r\n\r\n" not in head and (piece := client.recv(4096)):
            head += piece
        if head:
            done = queue.Queue()
            other.put((head.split()[1].decode(), done))
            if job := take(mine, other):
                target, others = job
                others.put(call(target))
            body = done.get()
            line = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            client.sendall(line % len(body) + body)
        client.close()


def begin(accept):
    for number in range(16):
        threading.Thread(target=swap, args=(accept, number), daemon=True).start()


def serve(environ, start_response):
    calls = "share" in sys.argv or "after" in sys.argv
    body = call(f"?{environ['QUERY_STRING']}") if calls else b"ok"
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    if environ["PATH_INFO"] == "/end":
        threading.Thread(target=server.shutdown).start()
    return [body]


if "after" in sys.argv:
    server = make_server("127.0.0.1", PORT, serve, threaded=True)
    server.serve_forever()
    clients = queue.Queue()
    listener = socket.create_server(("127.0.0.1", PORT), backlog=512)
    begin(clients.get)
    while True:
        clients.put(listener.accept()[0])
listener = socket.create_server(("127.0.0.1", PORT), backlog=512)
begin(lambda: listener.accept()[0])
if "cheroot" in sys.argv:
    from cheroot.wsgi import Server

    Server(("127.0.0.1", OTHER_PORT), serve, numthreads=8).start()
if "share" in sys.argv:
    os.environ["WERKZEUG_RUN_MAIN"] = "true"  # the listener is inherited
    os.environ["WERKZEUG_SERVER_FD"] = str(listener.fileno())
run_simple("127.0.0.1", OTHER_PORT or PORT, serve, threaded=True)
