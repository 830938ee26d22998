"""The feature groups and their programs: one table of what each program gives, and what needs it.

A kernel may refuse one program and accept all others. Loading tries each (bpf/objects.py): a
group is off when a *required* program of it is refused; an optional one that is refused takes away
what only it gives. `tests/kernel/features/test_trial.py` compares the table with the compiled
objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Program:
    """One BPF program. `gives` completes the sentence "without it there is no …"."""

    name: str
    object: str  # the file <object>.bpf.o that has it
    gives: str
    required: bool = False
    required_in_legacy: bool = False  # in the objects for kernels before 5.15
    needs: str = ""  # another program of the object, without which it gives nothing
    attached: bool = True  # False: the agent runs it, or attaches it in a way of its own


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An optional program that the kernel refuses, and what is not there without it."""

    program: str
    gives: str  # completes "without it there is no …"
    reason: str


@dataclass(frozen=True, slots=True)
class Attached:
    """One attached program, for status and doctor."""

    name: str
    type: str
    where: str
    id: int
    pin: str | None = None  # the name of its link's, if it has one

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "where": self.where, "id": self.id}


GROUPS = ("observe", "headers", "packets", "tls", "go", "go_write")
# Objects beside the one that has the name of its group.
_GROUP_OF_OBJECT = {"restore": "observe"}


def _observe() -> tuple[Program, ...]:
    return (
        Program("tl_ingress", "observe", "request that comes in", required=True),
        Program("tl_egress", "observe", "answer that goes out", required=True),
        Program("tl_read", "observe", "parent by the thread that has read a request"),
        Program(
            "tl_state",
            "observe",
            "span of a request whose connection ends before its answer is complete",
            required_in_legacy=True,  # nothing else frees what is kept of a connection
        ),
        Program("tl_tick", "observe", "parent by threads, since ticks of event loops do not end"),
        Program(
            "tl_end_requests",
            "observe",
            "end of a request of a killed process for the thread that has read it",
            attached=False,
        ),
        Program("tl_sent", "restore", "parent by the answer of a database or cache"),
    )


def _headers() -> tuple[Program, ...]:
    return (
        Program("tl_send", "headers", "header", required=True, attached=False),
        Program("tl_sockops", "headers", "connection to write a header into", required=True),
    )


def _packets() -> tuple[Program, ...]:
    return (
        Program("tl_packets_ops", "packets", "option on connections made since the agent started"),
        Program("tl_packets_out", "packets", "option on older connections", attached=False),
    )


def _tls() -> tuple[Program, ...]:
    calls = {
        "tl_ssl_read": "SSL_read",
        "tl_ssl_has_read": "the result of SSL_read",
        "tl_ssl_write": "SSL_write",
        "tl_ssl_has_sent": "the result of SSL_write",
        "tl_ssl_shake": "SSL_do_handshake",
        "tl_ssl_shaken": "the result of SSL_do_handshake",
        "tl_ssl_free": "SSL_free",
    }
    more = {
        "tl_ssl_read_ex": "SSL_read_ex",
        "tl_ssl_write_ex": "SSL_write_ex",
        "tl_ssl_write_x2": "SSL_write_ex2",
    }
    return (
        *(
            Program(name, "tls", f"sight of {what}", required=True, attached=False)
            for name, what in calls.items()
        ),
        *(
            Program(name, "tls", f"request of programs that call {what}", attached=False)
            for name, what in more.items()
        ),
        Program("tl_ssl_socket", "tls", "address and TCP option of requests inside TLS"),
    )


def _go() -> tuple[Program, ...]:
    http2, grpc = "HTTP/2 in Go", "gRPC in Go"
    programs = {
        "tl_go_starts_another": "parent by a goroutine that another one has started",
        "tl_go_serve": "request that a Go program serves over HTTPS",
        "tl_go_served": "request that a Go program serves over HTTPS",
        "tl_go_round_trip": "parent of HTTP/1.1 calls in Go",
        "tl_go_answered": "parent of HTTP/1.1 calls in Go",
        "tl_go_h2_serve": f"request served over {http2}",
        "tl_go_h2_served": f"request served over {http2}",
        "tl_go_h2_call": f"call over {http2}",
        "tl_go_h2_answer": f"call over {http2}",
        "tl_go_h2_called": f"call over {http2}",
        "tl_go_rpc_serve": f"request served over {grpc}",
        "tl_go_rpc_reply": f"request served over {grpc}",
        "tl_go_rpc_call": f"call over {grpc}",
        "tl_go_rpc_end": f"call over {grpc}",
    }
    return tuple(Program(name, "go", gives, attached=False) for name, gives in programs.items())


def _go_write() -> tuple[Program, ...]:
    frames = "tl_go_write_h2"  # writes the frames of gRPC, too
    grpc = "header in calls over gRPC in Go"
    return (
        Program(
            "tl_go_write_h1",
            "go_write",
            "header in HTTPS calls over HTTP/1.1 in Go",
            attached=False,
        ),
        Program(frames, "go_write", "header in calls over HTTP/2 in Go", attached=False),
        Program("tl_go_write_put", "go_write", grpc, needs=frames, attached=False),
        Program("tl_go_write_rpc", "go_write", grpc, needs=frames, attached=False),
    )


PROGRAMS = {
    program.name: program
    for program in (*_observe(), *_headers(), *_packets(), *_tls(), *_go(), *_go_write())
}


def group_of(program: Program) -> str:
    """The feature group that a program belongs to."""
    return _GROUP_OF_OBJECT.get(program.object, program.object)


def programs_of(group: str) -> tuple[Program, ...]:
    """The programs of a feature group, in the order in which they are attached."""
    return tuple(program for program in PROGRAMS.values() if group_of(program) == group)


def is_required(name: str, *, legacy: bool) -> bool:
    """Is a group off without this program? One that is not in the table is taken for such."""
    program = PROGRAMS.get(name)
    return program is None or program.required or (legacy and program.required_in_legacy)
