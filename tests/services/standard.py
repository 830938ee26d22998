"""Servers of the standard library, for any Python: `/at-once` and `/sleep` of tests/parents.

`threading`: ThreadingHTTPServer. `thread`: the same, in another thread than the main one, beside an
exporter. `wsgiref`: one connection at a time. `pool`: a class of the application's own hands
connections to threads that do each other's work. `beside`: three servers of the application's own
are asked all the time, before the known one is.
"""

import http.client
import os
import queue
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])


def call(target):
    connection = http.client.HTTPConnection(BACKEND.netloc, timeout=10)
    connection.request("GET", f"/call?{target.partition('?')[2]}")
    body = connection.getresponse().read()
    connection.close()
    return body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def work(self):
        return call(self.path)

    def do_GET(self):
        if self.path.startswith("/sleep"):
            time.sleep(0.01)
        body = self.work()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class Swapping(Handler):
    """Each puts its call into a queue, and makes the one that it takes from it."""

    protocol_version = "HTTP/1.0"
    calls = queue.Queue()

    def work(self):
        done = queue.Queue()
        self.calls.put((self.path, done))
        time.sleep(0.005)
        target, other = self.calls.get()
        other.put(call(target))
        return done.get()


class Pool(Server):
    clients = queue.Queue()

    def process_request(self, request, client_address):
        self.clients.put((request, client_address))

    def work(self):
        while True:
            self.process_request_thread(*self.clients.get())


def application(environ, start_response):
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.01)
    body = call(f"?{environ['QUERY_STRING']}")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def answer(listener):
    while True:
        client, _ = listener.accept()
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        client.close()


def ask(ports):
    while True:
        for port in ports:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
        time.sleep(0.02)


kind = sys.argv[1]
if kind == "wsgiref":
    WSGIRequestHandler.log_message = Handler.log_message
    WSGIServer.request_queue_size = 128
    make_server("127.0.0.1", PORT, application).serve_forever()
elif kind == "pool":
    server = Pool(("127.0.0.1", PORT), Swapping)
    for _ in range(16):
        threading.Thread(target=server.work, daemon=True).start()
    server.serve_forever()
elif kind == "thread":
    threading.Thread(target=Server(("127.0.0.1", 0), Handler).serve_forever).start()
    threading.Thread(target=lambda: Server(("127.0.0.1", PORT), Handler).serve_forever()).start()
    while True:
        time.sleep(1)
elif kind == "beside":
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    for listener in listeners:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
    ports = [listener.getsockname()[1] for listener in listeners]
    threading.Thread(target=ask, args=(ports,), daemon=True).start()
Server(("127.0.0.1", PORT), Handler).serve_forever()
