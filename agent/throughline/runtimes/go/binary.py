"""struct tl_go_binary: what go.bpf.o is told of one family of a Go program."""

from __future__ import annotations

from collections.abc import Collection

from throughline.bpf import abi
from throughline.runtimes.go.families import TRANSPORT, Family, probed
from throughline.runtimes.go.program import Program
from throughline.runtimes.go.releases import GRPC

# Members of struct tl_go_binary that are addresses -> the program that is attached there.
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
# Members that are addresses of type descriptors -> the type.
_TYPES = {
    "tcp_conn_type": "*net.TCPConn",
    "response_type": "*net/http.Response",
    "tls_conn_type": "*crypto/tls.Conn",
    "grpc_server_type": f"*{TRANSPORT}http2Server",
    "grpc_client_type": f"*{TRANSPORT}http2Client",
    "grpc_error_type": f"*{GRPC}/internal/status.Error",
    "wrap_error_type": "*fmt.wrapError",
    "grpc_incoming_type": f"{GRPC}/metadata.mdIncomingKey",
    "grpc_outgoing_type": f"{GRPC}/metadata.mdOutgoingKey",
    "grpc_headers_type": f"*{TRANSPORT}clientHeaders",
    "grpc_buffer_type": f"*{TRANSPORT}bufWriter",
    "buffer_type": "*bufio.Writer",
}
# Members that are offsets -> the field. The same in all families:
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
    "grpc_stream": f"{TRANSPORT}ServerStream.*Stream",
    "grpc_stream_method": f"{TRANSPORT}ServerStream.method",
    "grpc_stream_ctx": f"{TRANSPORT}ServerStream.ctx",
    "grpc_server_conn": f"{TRANSPORT}http2Server.conn",
    "grpc_attempt_stream": f"{GRPC}.csAttempt.cs",
    "grpc_attempt_transport": f"{GRPC}.csAttempt.transport",
    "grpc_client_conn": f"{TRANSPORT}http2Client.conn",
    "grpc_call_header": f"{GRPC}.clientStream.callHdr",
    "grpc_call_ctx": f"{GRPC}.clientStream.ctx",
    "grpc_call_first": f"{GRPC}.clientStream.firstAttempt",
    "grpc_header_host": f"{TRANSPORT}CallHdr.Host",
    "grpc_header_method": f"{TRANSPORT}CallHdr.Method",
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
    "grpc_headers_hf": f"{TRANSPORT}clientHeaders.hf",
    "grpc_headers_init": f"{TRANSPORT}clientHeaders.initStream",
    "grpc_loopy_cbuf": f"{TRANSPORT}loopyWriter.cbuf",
    "grpc_buffer_buf": f"{TRANSPORT}bufWriter.buf",
    "grpc_buffer_handle": f"{TRANSPORT}bufWriter.bufHandle",
    "grpc_buffer_offset": f"{TRANSPORT}bufWriter.offset",
}
# below Family.request:
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
# below Family.http2:
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
# What is written into requests -> the programs that this needs.
_WRITES = {
    abi.GoWrites.HTTP1: {"tl_go_round_trip", "tl_go_answered", "tl_go_write_h1"},
    abi.GoWrites.HTTP2: {"tl_go_h2_call", "tl_go_h2_answer", "tl_go_h2_called", "tl_go_write_h2"},
    abi.GoWrites.GRPC: {"tl_go_rpc_call", "tl_go_rpc_end", "tl_go_write_put", "tl_go_write_rpc"},
}


def _writes(program: Program, probes: Collection[str]) -> int:
    """enum tl_go_writes: what is written into requests, for a family with these probes."""
    writes = sum(kind for kind, needed in _WRITES.items() if needed.issubset(probes))
    # The frames of gRPC are written by golang.org/x/net, which is another family.
    return writes if "x_http2_write" not in program.missing else writes & ~abi.GoWrites.GRPC


def pack(
    program: Program, family: Family, *, write: bool = True, without: Collection[str] = ()
) -> bytes:
    """struct tl_go_binary of a family of a program; see `probed` for `write` and `without`."""
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
