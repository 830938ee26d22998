"""Threads that do each other's work, in a process whose main thread runs a server of Werkzeug.

Sixteen threads of two kinds, each kind with a queue. A thread reads a request, puts its call into
the queue of the other kind, makes a call from the queue of its own, and answers the request that it
has read with what another thread has got. They accept on PORT, and the known server, which makes no
call, on OTHER_PORT. With the word `share` both accept on PORT, and both call.
"""

import http.client
import os
import queue
import socket
import sys
import threading
from urllib.parse import urlsplit

from werkzeug.serving import run_simple

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


def swap(listener, number):
    mine, other = queues[number % 2], queues[(number + 1) % 2]
    while True:
        client, _ = listener.accept()
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


def serve(environ, start_response):
    body = call(f"?{environ['QUERY_STRING']}") if "share" in sys.argv else b"ok"
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]


listener = socket.create_server(("127.0.0.1", PORT), backlog=512)
for number in range(16):
    threading.Thread(target=swap, args=(listener, number), daemon=True).start()
if "share" in sys.argv:
    os.environ["WERKZEUG_RUN_MAIN"] = "true"  # the listener is inherited
    os.environ["WERKZEUG_SERVER_FD"] = str(listener.fileno())
run_simple("127.0.0.1", OTHER_PORT or PORT, serve, threaded=True)
