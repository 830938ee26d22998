"""The process `throughline-probes`: opens uprobes for an agent that may not do so itself.

Some kernels before 6.6 give uprobes only to processes with CAP_SYS_ADMIN. There this process has
that capability, and the agent has not. systemd starts it when the agent connects to its socket, and
it ends when nobody has asked for a while. Decision 24 (docs/decisions) says why it is so.

A request is one message (SOCK_SEQPACKET): REQUEST, and beside it the descriptor of the file
(SCM_RIGHTS), which the agent has opened for reading. The answer is ANSWER, and beside it the
descriptor of the perf event where the error number is 0. So the agent can only probe files that it
can read. This process opens no path that it is told, knows nothing of BPF, and attaches nothing.
A message of any other form ends its connection.

There is no reference counter (`ref_ctr_offset`) in a request: the kernel would write to the memory
of the probed processes.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import pwd
import socket
import stat
import struct
import sys

from throughline.bpf import perfevent

REQUEST = struct.Struct("<QiB3s")  # offset; process id, or ALL; at the return?; zeros
ANSWER = struct.Struct("<I")  # error number
ALL = -1  # every process that maps the file
IDLE_SECONDS = 60.0  # then the process ends: after longer than an agent waits to try again
SILENT_SECONDS = 1.0  # then a connection ends: there is one at a time
_PEER = struct.Struct("<iII")  # struct ucred: pid, uid, gid
_MAX_OFFSET = (1 << 63) - 1


class MalformedError(ValueError):
    """A message that no agent of ours sends."""


def serve(listener: socket.socket, *, users: set[int], idle: float = IDLE_SECONDS) -> None:
    """Answers one connection after the other, until none comes for `idle` seconds."""
    listener.settimeout(idle)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection:
            user = peer(connection)
            if user not in users:
                print(f"refused: a process of user {user} has connected", file=sys.stderr)
                continue
            try:
                connection.settimeout(SILENT_SECONDS)
                while answer(connection):
                    pass
            except MalformedError as error:
                print(f"refused: {error}", file=sys.stderr)
            except OSError:  # the other side is silent, or has gone
                continue


def peer(connection: socket.socket) -> int:
    """The user who has connected, as the kernel says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, user, _group = _PEER.unpack(credentials)
    return int(user)


def answer(connection: socket.socket) -> bool:
    """Answers one request; False at the end of the connection. Raises MalformedError, OSError."""
    message, files, flags = receive(connection, REQUEST.size)
    events: list[int] = []
    try:
        if not message and not files:
            return False
        number = 0
        offset, pid, returns = checked(message, files, flags)
        try:
            check_file(files[0])
            # The agent's descriptor leads to the file itself, whatever its name is here.
            path = f"/proc/self/fd/{files[0]}"
            process = None if pid == ALL else pid
            events.append(perfevent.open_uprobe(path, offset, returns=returns, pid=process))
        except OSError as error:
            number = error.errno or 0xFFFF
        socket.send_fds(connection, [ANSWER.pack(number)], events)
        return True
    finally:
        for descriptor in (*files, *events):
            os.close(descriptor)


def receive(connection: socket.socket, size: int) -> tuple[bytes, list[int], int]:
    """A message of `size` bytes, its descriptor if it has one, and flags for what did not fit.

    The kernel closes what does not fit. Raises OSError.
    """
    found = array.array("i")
    room = socket.CMSG_LEN(found.itemsize)
    message, parts, flags, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in parts:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return message, list(found), flags


def checked(message: bytes, files: list[int], flags: int) -> tuple[int, int, bool]:
    """Offset, process id, and whether at the return, of a request. Raises MalformedError."""
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(message) != REQUEST.size:
        raise MalformedError(f"a message of {len(message)} bytes, or with more descriptors")
    if len(files) != 1:
        raise MalformedError(f"a message with {len(files)} descriptors")
    offset, pid, returns, zeros = REQUEST.unpack(message)
    if offset > _MAX_OFFSET or pid < ALL or pid == 0 or returns > 1 or any(zeros):
        raise MalformedError(f"a message with a value that has no meaning: {message.hex()}")
    return offset, pid, bool(returns)


def check_file(descriptor: int) -> None:
    """Raises OSError where this is no regular file, or the agent may not read it."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        raise OSError(errno.EBADF, "not open for reading")


def main(arguments: list[str]) -> int:
    """Serves the socket that is standard input, as systemd gives it (StandardInput=socket).

    The arguments are the agent's user, by name or number, and after how many seconds it ends.
    """
    user, *idle = arguments
    number = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
    with socket.socket(fileno=os.dup(0)) as listener:
        serve(listener, users={0, number}, idle=float(idle[0]) if idle else IDLE_SECONDS)
    return 0
