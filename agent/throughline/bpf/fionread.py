"""Does FIONREAD tell the truth about a socket in a sockhash on this kernel? Tried, not guessed.

Some kernels (docs/decisions/0002-fionread.md) say 0 for every such socket; nginx, Java and .NET
then wait for ever for data that they already have.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios
import time

from throughline.bpf import libbpf, maps


def is_broken() -> bool:
    """Puts one end of a loopback connection into a sockhash of its own, with an sk_msg program.

    Raises OSError when the kernel refuses any step.
    """
    table = maps.create_sockhash(name="tl_fionread", entries=1)
    program = -1
    try:
        program = libbpf.load_pass(name="tl_pass")
        libbpf.attach_map(program, table, libbpf.SK_MSG_VERDICT)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2) as near,
            server.accept()[0] as far,
        ):
            try:
                maps.update(table, struct.pack("<Q", 1), struct.pack("<Q", near.fileno()))
            except OSError as error:
                # we run in a traced cgroup: it is in another sockhash, which tells as much
                if error.errno != errno.EBUSY:
                    raise
            far.sendall(b"12345")
            return _readable(near) != 5
    finally:
        os.close(table)
        if program >= 0:
            os.close(program)


def _readable(connection: socket.socket) -> int:
    """What FIONREAD says once the five bytes have arrived (MSG_PEEK waits for them)."""
    connection.settimeout(2)
    deadline = time.monotonic() + 2
    while len(connection.recv(5, socket.MSG_PEEK)) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]
