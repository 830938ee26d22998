"""Go programs among the files that traced processes execute: what go.bpf.o is told of them.

Each gets entries of tl_go_binaries, whose indices are in the cookies of its probes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from throughline.bpf import abi, libbpf, maps
from throughline.elf.elf import MalformedError
from throughline.probes.libraries import LaterError
from throughline.probes.uprobes import Site
from throughline.runtimes import go as golang
from throughline.runtimes.go import Program
from throughline.runtimes.go.indices import PROCESS_KEY_BYTES, GoIndices
from throughline.runtimes.go.waiting import Analysed, GoAnalysis
from throughline.runtimes.go.wanted import GRPC

log = logging.getLogger(__name__)


_TRANSPORT = f"{GRPC}/internal/transport."
_WRITING = "tl_go_write_"  # programs of the group go_write begin with it


@dataclass(frozen=True, slots=True)
class Family:
    """A part of a program that has offsets of its own: HTTP/2 may be there twice."""

    # program of go.bpf.o -> the feature that it belongs to, and the names of its function
    probes: Mapping[str, tuple[str, tuple[str, ...]]]
    # what the names of offsets begin with where they differ
    http2: str = "net/http.http2"
    request: str = "net/http.Request."  # since Go 1.27


_Probes = Mapping[str, tuple[str, tuple[str, ...]]]


def _http2(feature: str, *packages: str) -> tuple[_Probes, _Probes]:
    """Of the server, and of the client."""

    def method(struct: str, name: str) -> tuple[str, ...]:
        parts = (package.rpartition(".") for package in packages)
        return tuple(f"{start}.(*{types}{struct}).{name}" for start, _, types in parts)

    return {
        "tl_go_h2_serve": (f"{feature}_server", method("serverConn", "runHandler")),
        "tl_go_h2_served": (f"{feature}_server", method("responseWriter", "handlerDone")),
    }, {
        "tl_go_h2_call": (f"{feature}_client", method("clientStream", "writeRequest")),
        "tl_go_h2_answer": (f"{feature}_client", method("clientConnReadLoop", "handleResponse")),
        "tl_go_h2_called": (f"{feature}_client", method("clientStream", "cleanupWriteRequest")),
        "tl_go_write_h2": (f"{feature}_write", method("Framer", "WriteHeaders")),
    }


_BUNDLED = _http2("http2", "net/http.http2", "net/http/internal/http2.")
_X = _http2("x_http2", "golang.org/x/net/http2.")
FAMILIES = (
    Family(
        {
            "tl_go_starts_another": ("goroutines", ("runtime.newproc1",)),
            "tl_go_serve": ("http_server", ("net/http.serverHandler.ServeHTTP",)),
            "tl_go_served": ("http_server", ("net/http.(*response).finishRequest",)),
            "tl_go_round_trip": ("http_client", ("net/http.(*persistConn).roundTrip",)),
            "tl_go_answered": ("http_client", ("net/http.readTransfer",)),
            "tl_go_write_h1": ("http_write", ("net/http.(*transferWriter).writeHeader",)),
        }
    ),
    Family(_BUNDLED[0], request="net/http/internal/http2.ServerRequest."),
    Family(_BUNDLED[1], request="net/http/internal/http2.ClientRequest."),
    Family({**_X[0], **_X[1]}, http2="golang.org/x/net/http2."),
    Family(
        {
            "tl_go_rpc_serve": ("grpc_server", (f"{GRPC}.(*Server).handleStream",)),
            "tl_go_rpc_reply": (
                "grpc_server",
                (
                    f"{_TRANSPORT}(*http2Server).writeStatus",
                    f"{_TRANSPORT}(*http2Server).WriteStatus",
                ),
            ),
            "tl_go_rpc_call": ("grpc_client", (f"{GRPC}.(*csAttempt).newStream",)),
            "tl_go_rpc_end": ("grpc_client", (f"{GRPC}.(*clientStream).finish",)),
            "tl_go_write_put": (
                "grpc_write",
                (f"{_TRANSPORT}(*controlBuffer).executeAndPut",),
            ),
            "tl_go_write_rpc": ("grpc_write", (f"{_TRANSPORT}(*loopyWriter).writeHeader",)),
        }
    ),
)
# member of struct tl_go_binary -> the program whose address it is
_ADDRESSES = {
    "newproc_at": "tl_go_starts_another",
    "serve_at": "tl_go_serve",
    "round_trip_at": "tl_go_round_trip",
    "read_transfer_at": "tl_go_answered",
    "run_handler_at": "tl_go_h2_serve",
    "write_request_at": "tl_go_h2_call",
    "grpc_serve_at": "tl_go_rpc_serve",
    "grpc_call_at": "tl_go_rpc_call",
    "grpc_finish_at": "tl_go_rpc_end",
    "grpc_put_at": "tl_go_write_put",
    "write_headers_at": "tl_go_write_h2",
    "write_header_at": "tl_go_write_h1",
}
_TYPES = {
    "tcp_conn_type": "*net.TCPConn",
    "response_type": "*net/http.Response",
    "tls_conn_type": "*crypto/tls.Conn",
    "grpc_server_type": f"*{_TRANSPORT}http2Server",
    "grpc_client_type": f"*{_TRANSPORT}http2Client",
    "grpc_error_type": f"*{GRPC}/internal/status.Error",
    "wrap_error_type": "*fmt.wrapError",
    "grpc_incoming_type": f"{GRPC}/metadata.mdIncomingKey",
    "grpc_outgoing_type": f"{GRPC}/metadata.mdOutgoingKey",
    "grpc_headers_type": f"*{_TRANSPORT}clientHeaders",
    "grpc_buffer_type": f"*{_TRANSPORT}bufWriter",
    "buffer_type": "*bufio.Writer",
}
# member -> where the field is
_OFFSETS = {
    "g_goid": "runtime.g.goid",
    "g_parent_goid": "runtime.g.parentGoid",
    "g_m": "runtime.g.m",
    "m_p": "runtime.m.p",
    "p_goidcache": "runtime.p.goidcache",
    "p_goidcacheend": "runtime.p.goidcacheend",
    "url_host": "net/url.URL.Host",
    "url_path": "net/url.URL.Path",
    "url_raw_query": "net/url.URL.RawQuery",
    "persist_conn_conn": "net/http.persistConn.conn",
    "persist_conn_tls_state": "net/http.persistConn.tlsState",
    "persist_conn_br": "net/http.persistConn.br",
    "fd_sysfd": "net.netFD.pfd.Sysfd",
    "response_conn": "net/http.response.conn",
    "response_status": "net/http.response.status",
    "conn_rwc": "net/http.conn.rwc",
    "client_response_status": "net/http.Response.StatusCode",
    "grpc_stream": f"{_TRANSPORT}ServerStream.*Stream",
    "grpc_stream_method": f"{_TRANSPORT}ServerStream.method",
    "grpc_stream_ctx": f"{_TRANSPORT}ServerStream.ctx",
    "grpc_server_conn": f"{_TRANSPORT}http2Server.conn",
    "grpc_attempt_stream": f"{GRPC}.csAttempt.cs",
    "grpc_attempt_transport": f"{GRPC}.csAttempt.transport",
    "grpc_client_conn": f"{_TRANSPORT}http2Client.conn",
    "grpc_call_header": f"{GRPC}.clientStream.callHdr",
    "grpc_call_ctx": f"{GRPC}.clientStream.ctx",
    "grpc_call_first": f"{GRPC}.clientStream.firstAttempt",
    "grpc_header_host": f"{_TRANSPORT}CallHdr.Host",
    "grpc_header_method": f"{_TRANSPORT}CallHdr.Method",
    "grpc_error_status": f"{GRPC}/internal/status.Error.s",
    "grpc_error_proto": f"{GRPC}/internal/status.Error.e",
    "grpc_status_proto": f"{GRPC}/internal/status.Status.s",
    "grpc_proto_code": "google.golang.org/genproto/googleapis/rpc/status.Status.Code",
    "wrap_error_err": "fmt.wrapError.err",
    "persist_conn_bw": "net/http.persistConn.bw",
    "persist_conn_is_client_conn": "net/http.persistConn.isClientConn",
    "transfer_writer_header": "net/http.transferWriter.Header",
    "buffer_buf": "bufio.Writer.buf",
    "buffer_n": "bufio.Writer.n",
    "grpc_attempt_ctx": f"{GRPC}.csAttempt.ctx",
    "grpc_headers_hf": f"{_TRANSPORT}clientHeaders.hf",
    "grpc_headers_init": f"{_TRANSPORT}clientHeaders.initStream",
    "grpc_loopy_cbuf": f"{_TRANSPORT}loopyWriter.cbuf",
    "grpc_buffer_buf": f"{_TRANSPORT}bufWriter.buf",
    "grpc_buffer_handle": f"{_TRANSPORT}bufWriter.bufHandle",
    "grpc_buffer_offset": f"{_TRANSPORT}bufWriter.offset",
}
_REQUEST = {
    "request_ctx": "ctx",
    "request_method": "Method",
    "request_url": "URL",
    "request_proto_major": "ProtoMajor",
    "request_header": "Header",
    "request_host": "Host",
    "request_uri": "RequestURI",
    "request_tls": "TLS",
}
_HTTP2 = {
    "h2_server_conn": "serverConn.conn",
    "h2_writer_state": "responseWriter.rws",
    "h2_state_status": "responseWriterState.status",
    "h2_stream_conn": "clientStream.cc",
    "h2_client_conn": "ClientConn.tconn",
    "h2_client_tls_state": "ClientConn.tlsState",
    "h2_fields": "MetaHeadersFrame.Fields",
    "framer_w": "Framer.w",
    "h2_stream_id": "clientStream.ID",
}
# a part of a program is written into where it has all of this
_WRITES = {
    abi.GoWrites.HTTP1: {"tl_go_round_trip", "tl_go_answered", "tl_go_write_h1"},
    abi.GoWrites.HTTP2: {"tl_go_h2_call", "tl_go_h2_answer", "tl_go_h2_called", "tl_go_write_h2"},
    abi.GoWrites.GRPC: {"tl_go_rpc_call", "tl_go_rpc_end", "tl_go_write_put", "tl_go_write_rpc"},
}

# maps with what an earlier run knew
_EARLIER = ("tl_unit_layouts", "tl_go_exchanges", "tl_go_writers", "tl_go_written")
_MAX_KEPT_BYTES = 64 << 20  # of where functions begin: 4 for each
BUDGET_SECONDS = 0.02  # for looking at functions, while spans wait
_NEW = bytes([abi.GoStart.NEW])
_INHERITS, _RECEIVES = bytes([abi.GoStart.INHERITS]), bytes([abi.GoStart.RECEIVES])


class GoPrograms:
    """What is known of Go programs. Not for several threads."""

    def __init__(
        self,
        loaded: libbpf.Object,
        *,
        write: bool,
        without: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write`: the group go_write is on. `without`: programs that this kernel refuses."""
        self._write = write
        self._without = frozenset(without)
        self._starts = loaded.map_fd("tl_go_starts")
        # indices of an earlier run: its programs are found again, under others
        # and what they asked is followed no more
        for name in _EARLIER:
            earlier = loaded.map_fd(name)
            for key in list(maps.keys(earlier, PROCESS_KEY_BYTES)):
                maps.delete(earlier, key)
        self._indices = GoIndices(loaded)
        self._known: dict[int, Analysed] = {}  # by index of tl_go_binaries
        self._analysis = GoAnalysis(clock)
        self.failures: Counter[str] = Counter()

    def find(self, fd: int) -> tuple[Site, ...]:
        """The sites of a Go program; none in any other file, and in one that is not understood."""
        try:
            return self._sites(self._analysis.ask(fd))
        except (MalformedError, golang.UnsupportedError) as error:
            self.failures[type(error).__name__.removesuffix("Error").lower()] += 1
            log.warning("a Go program is not followed: %s", error)
            return ()
        except (OSError, LaterError):
            raise
        except Exception as error:
            # A net: the file is of those who are traced, and must not end the agent.
            self.failures["failed"] += 1
            log.exception("a Go program is not followed: %r", error)
            return ()

    def answer(self, probed: Iterable[tuple[int, Sequence[Site]]]) -> None:
        """To be called each second, with all open files that are probed, and where.

        Says of which functions goroutines inherit their request. What does not fit into its time is
        answered by the next calls; until then they inherit none. Programs that are not probed any
        more are forgotten.
        """
        files = {_index(site): fd for fd, sites in probed for site in sites}
        self._forget(files)
        until = time.monotonic() + BUDGET_SECONDS
        for key in maps.keys(self._starts, abi.GO_START_KEY.size):
            if maps.lookup(self._starts, key, 1) != _NEW:
                continue
            start = abi.GoStartKey(*abi.GO_START_KEY.unpack(key))
            known = self._known.get(start.binary)
            if known is None:
                continue
            try:
                receives = known.functions.receives(start.pc, files[start.binary])
            except (OSError, MalformedError):
                receives = True
            except Exception:  # as in `find`
                self.failures["failed"] += 1
                receives = True
            maps.update(self._starts, key, _RECEIVES if receives else _INHERITS)
            if time.monotonic() > until:
                break

    def describe(self, sites: Sequence[Site]) -> dict[str, str]:
        """What is known of the program with these sites, for status."""
        return {"version": self._known[_index(sites[0])].program.version}

    def close(self) -> None:
        self._analysis.close()

    def _forget(self, used: Collection[int]) -> None:
        self._analysis.forget()
        for index in self._known.keys() - used:
            del self._known[index]
        self._indices.keep(used)

    def _sites(self, analysed: Analysed | None) -> tuple[Site, ...]:
        if analysed is None:
            return ()
        kept = {known.digest: known.functions.kept_bytes for known in self._known.values()}
        kept[analysed.digest] = analysed.functions.kept_bytes
        if sum(kept.values()) > _MAX_KEPT_BYTES:
            self.failures["too_many_programs"] += 1
            return ()
        found: list[Site] = []
        program = analysed.program
        for number, family in enumerate(FAMILIES):
            sites = dict(probed(program, family, write=self._write, without=self._without))
            if not sites:
                continue
            packed = pack(program, family, write=self._write, without=self._without)
            # the digest is of something else where the file was written to meanwhile
            told = hashlib.sha256(packed).hexdigest()
            index = self._indices.take(f"{analysed.digest} {number} {told}", packed)
            if not index:
                self.failures["too_many_programs"] += 1
                continue
            self._known[index] = analysed
            # what the first family says of a process serves them all
            again = abi.Go.AGAIN if found else 0
            found += [
                Site(
                    probe,
                    site.offset,
                    dear=site.dear,
                    cookie=index | again | (abi.Go.RESTARTS if site.restarts else 0),
                )
                for probe, site in sites.items()
            ]
        return tuple(found)


def _index(site: Site) -> int:
    """Of tl_go_binaries; 0 for what belongs to no Go program."""
    return site.cookie & (abi.Go.BINARIES - 1)


def probed(
    program: Program, family: Family, *, write: bool = True, without: Collection[str] = ()
) -> Iterator[tuple[str, golang.Site]]:
    """What is attached where in a program, of the features that it has.

    A feature of which one program is among `without` is not followed at all: half of it would be
    wrong.
    """
    refused = {feature for probe, (feature, _) in family.probes.items() if probe in without}
    for probe, (feature, functions) in family.probes.items():
        if feature in program.missing or feature in refused:
            continue
        if write or not probe.startswith(_WRITING):
            for function in functions:
                if function in program.sites:
                    yield probe, program.sites[function]


def _writes(program: Program, probes: Collection[str]) -> int:
    """enum tl_go_writes of a part of a program with these probes."""
    writes = sum(kind for kind, needed in _WRITES.items() if needed.issubset(probes))
    # its frames are made by golang.org/x/net, which is another part
    return writes if "x_http2_write" not in program.missing else writes & ~abi.GoWrites.GRPC


def pack(
    program: Program, family: Family, *, write: bool = True, without: Collection[str] = ()
) -> bytes:
    """struct tl_go_binary of a program."""
    sites = dict(probed(program, family, write=write, without=without))
    addresses = {name: sites[probe].address for name, probe in _ADDRESSES.items() if probe in sites}
    known = program.offsets
    own = f"{family.request}Method" in known and family.request != "net/http.Request."
    request = family.request if own else "net/http.Request."
    fields = _OFFSETS | {name: request + field for name, field in _REQUEST.items()}
    if own:
        fields["request_ctx"] = f"{request}Context"
    fields |= {name: family.http2 + field for name, field in _HTTP2.items()}
    return abi.GO_BINARY.pack(
        *abi.GoBinary(
            **dict.fromkeys(_ADDRESSES, 0) | addresses,
            **{name: program.types.get(of, 0) for name, of in _TYPES.items()},
            **{name: known.get(field, abi.Go.UNKNOWN) for name, field in fields.items()},
            swiss_maps=program.swiss_maps,
            writes=_writes(program, sites),
        )
    )
