"""The table of feature groups: programs, needs, configuration key and capabilities of each.

The agent and `throughline doctor` read it. Tests compare it with what cannot import it: the
compiled objects (tests/kernel/features/test_trial.py), the pages
(tests/unit/features/test_table.py), and the collection for Ansible (tests/unit/ansible).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

NETWORK_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
# Uprobes, and the files of other users' processes.
PROBING_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")
READING_CAPABILITIES = PROBING_CAPABILITIES  # other users' processes and their memory
WRITING_CAPABILITIES = (*PROBING_CAPABILITIES, "CAP_SYS_ADMIN")
_LEASE = ("CAP_LEASE",)  # a process that writes to a probed file waits until the probes are gone
BASE = "observe"  # the group without which no other works


class Place(enum.Enum):
    """Where a program is attached."""

    SECTION = "where its section says"  # a cgroup or a tracepoint, by a link
    SOCKETS = "to the sockhash tl_socks"
    INTERFACES = "to the egress of each interface"
    FILES = "to functions in executable files"  # by uprobes
    NOWHERE = "the agent runs it"


class Uprobes(enum.Enum):
    """The uprobes of a group."""

    NONE = "none"
    ENTRIES = "where functions begin"
    RETURNS = "where functions begin and where they return"


@dataclass(frozen=True, slots=True)
class Program:
    """One BPF program.

    A kernel may refuse one program and accept all others. When it refuses a required program, the
    group is off. When it refuses another one, only what that program gives is missing.
    """

    name: str
    object: str  # the file <object>.bpf.o that has it
    gives: str  # completes the sentence "without it there is no …"
    required: bool = False
    required_in_legacy: bool = False  # in the objects for kernels before 5.15
    needs: str = ""  # another program of the object, without which this one gives nothing
    place: Place = Place.SECTION
    fexit_only: bool = False  # in the form of its object for kernels before 6.3


@dataclass(frozen=True, slots=True)
class Group:
    """One feature group."""

    name: str
    programs: tuple[Program, ...]  # in the order in which they are attached
    capabilities: tuple[str, ...]  # without one of them the group is off
    optional_capabilities: tuple[str, ...] = ()  # the group uses them where the host has them
    needs: str = ""  # the group without which this one is off
    switch: str = ""  # the configuration key that turns it off; the base group has none
    kernel: tuple[int, int] = (5, 10)  # the oldest that can have it
    uprobes: Uprobes = Uprobes.NONE
    reads: bool = False  # what its provider finds in the memory of processes; it probes nothing
    writes: bool = False  # into the memory of the probed programs: bpf_probe_write_user
    maps: tuple[str, ...] = ()  # pinned maps that no other group uses
    files: str = ""  # the title of its probed files in `throughline status`, if it has such

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of the objects with its programs, in the order in which they are loaded."""
        return tuple(dict.fromkeys(program.object for program in self.programs))


def _observe() -> tuple[Program, ...]:
    first = "tl_unix_sends"
    return (
        Program("tl_ingress", "observe", "request that comes in", required=True),
        Program("tl_egress", "observe", "answer that goes out", required=True),
        Program("tl_read", "observe", "parent by the thread that has read a request"),
        Program(
            "tl_state",
            "observe",
            "span of a request whose connection ends before its answer is complete",
            required_in_legacy=True,  # nothing else frees the state of a connection there
        ),
        Program("tl_tick", "observe", "parent by threads, since ticks of event loops do not end"),
        Program(
            "tl_end_requests",
            "observe",
            "end of a request of a killed process for the thread that has read it",
            place=Place.NOWHERE,
        ),
        Program("tl_sent", "restore", "parent by the answer of a database or cache"),
        Program(
            "tl_sent_6",
            "restore",
            "parent by the answer of a database or cache over IPv6",
            fexit_only=True,
        ),
        Program(first, "unix", "request on a Unix socket"),
        Program("tl_unix_sent", "unix", "request on a Unix socket", needs=first),
        Program("tl_unix_read", "unix", "request on a Unix socket", needs=first),
    )


def _headers() -> tuple[Program, ...]:
    return (
        Program("tl_send", "headers", "header", required=True, place=Place.SOCKETS),
        Program("tl_sockops", "headers", "connection to write a header into", required=True),
    )


def _packets() -> tuple[Program, ...]:
    older = "option on older connections"
    return (
        Program("tl_packets_ops", "packets", "option on connections made since the agent started"),
        Program("tl_packets_out", "packets", older, place=Place.INTERFACES),
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
            Program(name, "tls", f"sight of {what}", required=True, place=Place.FILES)
            for name, what in calls.items()
        ),
        *(
            Program(name, "tls", f"request of programs that call {what}", place=Place.FILES)
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
    return tuple(Program(name, "go", gives, place=Place.FILES) for name, gives in programs.items())


def _go_write() -> tuple[Program, ...]:
    frames = "tl_go_write_h2"  # it writes the frames of gRPC, too
    http1, http2 = "header in HTTPS calls over HTTP/1.1 in Go", "header in calls over HTTP/2 in Go"
    grpc = "header in calls over gRPC in Go"
    return (
        Program("tl_go_write_h1", "go_write", http1, place=Place.FILES),
        Program(frames, "go_write", http2, place=Place.FILES),
        Program("tl_go_write_put", "go_write", grpc, needs=frames, place=Place.FILES),
        Program("tl_go_write_rpc", "go_write", grpc, needs=frames, place=Place.FILES),
    )


def _python() -> tuple[Program, ...]:
    parent = "parent by contexts of Python"
    return (
        Program("tl_py_copied", "python", parent, required=True, place=Place.FILES),
        Program("tl_py_freed", "python", parent, required=True, place=Place.FILES),
        Program("tl_py_spawned", "python", "parent by greenlets (gevent)", place=Place.FILES),
        Program("tl_py_switched", "python", "parent by greenlets (gevent)", place=Place.FILES),
        Program(
            "tl_py_queued",
            "python",
            "parent of calls that uvloop before 0.23 writes later",
            place=Place.FILES,
        ),
        Program("tl_py_agent_end", "python", parent, required=True),
    )


def _proxies() -> tuple[Program, ...]:
    haproxy, nginx = "parent of calls of HAProxy", "parent by requests of nginx"
    varnish = "parent of calls of Varnish"
    programs = {
        "tl_hap_makes": haproxy,
        "tl_hap_made": f"{haproxy} and Varnish",
        "tl_hap_works": haproxy,
        "tl_hap_rests": f"{haproxy} and Varnish",
        "tl_var_makes": varnish,
        "tl_var_works": varnish,
        "tl_nginx_asks": nginx,
        "tl_nginx_asked": nginx,
    }
    return (
        *(Program(name, "proxies", gives, place=Place.FILES) for name, gives in programs.items()),
        Program("tl_proxy_end", "proxies", f"{haproxy}, Varnish and nginx", required=True),
    )


# In the order in which they are attached.
GROUPS: Mapping[str, Group] = {
    group.name: group
    for group in (
        Group(BASE, _observe(), NETWORK_CAPABILITIES),
        Group(
            "headers",
            _headers(),
            NETWORK_CAPABILITIES,
            needs=BASE,
            switch="propagation.headers",
            maps=("tl_socks", "tl_members"),  # tl_members says which sockets are in tl_socks
        ),
        Group(
            "packets",
            _packets(),
            NETWORK_CAPABILITIES,
            needs=BASE,
            switch="propagation.packets",
        ),
        Group(
            "tls",
            _tls(),
            PROBING_CAPABILITIES,
            optional_capabilities=_LEASE,
            needs=BASE,
            switch="instrumentation.tls",
            uprobes=Uprobes.RETURNS,
            files="TLS in file",
        ),
        Group(
            "go",
            _go(),
            PROBING_CAPABILITIES,
            optional_capabilities=_LEASE,
            needs=BASE,
            switch="instrumentation.go",
            kernel=(5, 15),  # the first whose uprobes have cookies
            uprobes=Uprobes.ENTRIES,
            files="Go program",
        ),
        Group(
            "go_write",
            _go_write(),
            WRITING_CAPABILITIES,
            needs="go",
            switch="instrumentation.go_write",
            kernel=(5, 15),
            uprobes=Uprobes.ENTRIES,
            writes=True,
        ),
        Group(
            "java",
            (),
            READING_CAPABILITIES,
            needs=BASE,
            switch="instrumentation.java",
            reads=True,
            files="Java in file",
        ),
        Group(
            "python",
            _python(),
            PROBING_CAPABILITIES,
            optional_capabilities=_LEASE,
            needs=BASE,
            switch="instrumentation.python",
            kernel=(5, 15),
            uprobes=Uprobes.RETURNS,
            files="Python",
        ),
        Group(
            "proxies",
            _proxies(),
            PROBING_CAPABILITIES,
            optional_capabilities=_LEASE,
            needs=BASE,
            switch="instrumentation.proxies",
            kernel=(5, 15),
            uprobes=Uprobes.RETURNS,
            files="Proxy",
        ),
        Group(
            "ruby",
            (),
            READING_CAPABILITIES,
            needs=BASE,
            switch="instrumentation.ruby",
            reads=True,
            files="Ruby in file",
        ),
        Group(
            "node",
            (),
            READING_CAPABILITIES,
            needs=BASE,
            switch="instrumentation.node",
            reads=True,
            files="Node.js",
        ),
    )
}
# The modes of a host, the strongest first: the groups that must be on.
MODES: Mapping[str, tuple[str, ...]] = {
    "write": (BASE, "headers", "go_write"),
    "network": (BASE, "headers"),
    "observe": (BASE,),
    "none": (),
}
PROGRAMS: Mapping[str, Program] = {
    program.name: program for group in GROUPS.values() for program in group.programs
}


def is_required(name: str, *, legacy: bool) -> bool:
    """Returns whether a group is off without this program, as it is for a program not listed."""
    program = PROGRAMS.get(name)
    return program is None or program.required or (legacy and program.required_in_legacy)
