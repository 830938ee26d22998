"""Tries whether FIONREAD is right for a socket in a sockhash on this kernel.

Some kernels (docs/decisions/0002-fionread.md) return 0 for every such socket. nginx, Java and .NET
then wait forever for data that they already have.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import termios
import time

from throughline.bpf import libbpf, maps


def is_broken() -> bool:
    """Puts one end of a loopback connection into a new sockhash with an sk_msg program.

    Raises OSError when the kernel refuses a step.
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
                maps.update(table, maps.U64.pack(1), maps.U64.pack(near.fileno()))
            except OSError as error:
                # This process is in a traced cgroup, and the socket in the agent's sockhash. That
                # is as good for the trial.
                if error.errno != errno.EBUSY:
                    raise
            far.sendall(b"12345")
            return _readable(near) != 5
    finally:
        os.close(table)
        if program >= 0:
            os.close(program)


def _readable(connection: socket.socket) -> int:
    """The result of FIONREAD after the five bytes have arrived; MSG_PEEK waits for them."""
    connection.settimeout(2)
    deadline = time.monotonic() + 2
    while len(connection.recv(5, socket.MSG_PEEK)) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]
