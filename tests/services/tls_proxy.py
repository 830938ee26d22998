"""An HTTPS forward proxy that tunnels by CONNECT: PORT, CERTIFICATE in the environment."""

import os
import select
import socket
import ssl
import sys
import threading

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.environ["CERTIFICATE"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))


def tunnel(plain: socket.socket) -> None:
    with context.wrap_socket(plain, server_side=True) as client:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        host, _, port = head.split()[1].decode().partition(":")
        with socket.create_connection((host, int(port))) as onward:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            while True:
                if not client.pending():
                    ready, _, _ = select.select([client, onward], [], [])
                else:
                    ready = [client]
                for one, other in ((client, onward), (onward, client)):
                    if one in ready:
                        data = one.recv(16384)
                        if not data:
                            return
                        other.sendall(data)


while True:
    connection, _ = listener.accept()
    threading.Thread(target=tunnel, args=(connection,), daemon=True).start()
