"""The functions, fields and types that each feature needs in a Go program.

Each entry is a group of names that mean the same in different versions. A field or type is kept
under the first name of its group, so that the reader asks for one name. A function keeps the name
that it has in the program. Names are those in the sources of Go 1.18 to 1.27,
golang.org/x/net/http2 and google.golang.org/grpc 1.38 to 1.85 (releases.py).

A program has HTTP/2 up to twice: net/http has a copy of its own ("net/http.http2…", since Go 1.27
"net/http/internal/http2.…"), and a program may also use golang.org/x/net/http2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from throughline.runtimes.go.releases import GRPC, MODULES, X_NET, Tested

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature that a program has where all of these names are there.

    Features of the same name are the same feature in different versions: one is enough. A field is
    "package/path.Struct.field", and for a field of a struct within the struct ".field" once more;
    "*field" has to be a pointer.
    """

    name: str
    functions: tuple[Group, ...]
    offsets: tuple[Group, ...] = ()
    types: tuple[Group, ...] = ()  # "*package/path.Struct" is the pointer to it
    package: str = ""  # named in the reason where a program has none of the functions
    modules: Mapping[str, Tested] = field(default_factory=dict)
    shared: tuple[Group, ...] = ()  # functions that other features need too
    # A frame of HTTP/2 is changed where it is passed: in memory, and not in registers.
    frame: bool = False


def split(name: str) -> tuple[str, str]:
    """The struct and the path in it: "net.netFD.pfd.Sysfd" is "pfd.Sysfd" of "net.netFD"."""
    start = name.rfind("/") + 1
    package, struct, path = name[start:].split(".", 2)
    return f"{name[:start]}{package}.{struct}", path


def _each(prefix: str, *names: str) -> tuple[Group, ...]:
    return tuple((prefix + name,) for name in names)


def _of(prefixes: Iterable[str], *names: str) -> tuple[Group, ...]:
    """The same names below each of several prefixes."""
    return tuple(tuple(prefix + name for prefix in prefixes) for name in names)


def _method(prefix: str, struct: str, name: str) -> Group:
    """A method of "net/http.http2" and "Framer" is "net/http.(*http2Framer).name"."""
    package, _, start = prefix.rpartition(".")
    return (f"{package}.(*{start}{struct}).{name}",)


# --- net ----------------------------------------------------------------------------------------

_SOCKET = (
    *_each("net.TCPConn.", "conn.fd"),
    *_each("net.netFD.", "pfd.Sysfd"),
    *_each("crypto/tls.Conn.", "conn"),
)
_CONNECTIONS = _each("*", "net.TCPConn", "crypto/tls.Conn")

# --- net/http -----------------------------------------------------------------------------------

_URL = _each("net/url.URL.", "Scheme", "Host", "Path", "RawQuery")
_REQUEST = (
    *_each("net/http.Request.", "Method", "URL", "ProtoMajor", "Header", "Host", "RequestURI"),
    *_each("net/http.Request.", "TLS", "ctx"),
    *_URL,
)
_SERVE = ("net/http.serverHandler.ServeHTTP",)

# --- HTTP/2 -------------------------------------------------------------------------------------

# The copy in net/http, up to Go 1.26 and since; golang.org/x/net/http2.
_BUNDLED, _INTERNAL = "net/http.http2", "net/http/internal/http2."
_X = "golang.org/x/net/http2."
# A type of its own since Go 1.27. Before, its key is no type's name.
_CLIENT_REQUEST = "net/http.http2ClientRequest."


def _frame(prefixes: Iterable[str]) -> tuple[Group, ...]:
    """Fields of a frame with headers. An embedded struct has the name of its type."""
    named = [(prefix, prefix.rpartition(".")[2]) for prefix in prefixes]
    return (
        *_of(prefixes, "MetaHeadersFrame.Fields"),
        tuple(f"{prefix}MetaHeadersFrame.{start}HeadersFrame" for prefix, start in named),
        tuple(f"{prefix}HeadersFrame.{start}FrameHeader.StreamID" for prefix, start in named),
    )


def _http2_client(name: str, prefix: str, request: Group, *, key: str, package: str) -> Feature:
    """The client of one copy of HTTP/2. Its fields are kept under the names that `key` begins."""
    prefixes = (key, prefix)
    return Feature(
        name,
        functions=(
            _method(prefix, "clientStream", "writeRequest"),
            _method(prefix, "clientConnReadLoop", "handleResponse"),
            _method(prefix, "clientStream", "cleanupWriteRequest"),
        ),
        offsets=(
            *_of(prefixes, "clientStream.cc", "clientStream.ID"),
            *_of(prefixes, "ClientConn.tconn", "ClientConn.tlsState"),
            *_frame(prefixes),
            *_of(request, "Method", "URL", "Header", "Host"),
            *_URL,
            *_SOCKET,
        ),
        types=_CONNECTIONS,
        package=package,
        modules={X_NET: MODULES[X_NET]} if prefix == _X else {},
    )


def _http2_server(name: str, prefix: str, writer: Group, *, key: str, package: str) -> Feature:
    prefixes = (key, prefix)
    return Feature(
        name,
        functions=(
            _method(prefix, "responseWriterState", "writeHeader"),
            _method(prefix, "responseWriter", "handlerDone"),
        ),
        shared=(_SERVE,),
        offsets=(
            *_of(prefixes, "responseWriter.rws", "responseWriterState.stream"),
            *_of(prefixes, "responseWriterState.conn", "responseWriterState.status"),
            *_of(prefixes, "stream.id", "serverConn.conn"),
            *_REQUEST,
            *_SOCKET,
        ),
        types=(*_CONNECTIONS, writer),
        package=package,
        modules={X_NET: MODULES[X_NET]} if prefix == _X else {},
    )


def _http2_write(name: str, prefix: str, *, key: str, package: str) -> Feature:
    """The function that is called with encoded fields to write them as a frame."""
    return Feature(
        name,
        functions=(_method(prefix, "Framer", "WriteHeaders"),),
        offsets=_of((key, prefix), "Framer.w"),
        package=package,
        modules={X_NET: MODULES[X_NET]} if prefix == _X else {},
        frame=True,
    )


_CLIENT, _SERVER = "the HTTP/2 client of net/http", "the HTTP/2 server of net/http"
_X_CLIENT, _X_SERVER = f"the client of {X_NET}/http2", f"the server of {X_NET}/http2"
_REQUEST_BEFORE = (_CLIENT_REQUEST, "net/http.Request.")
_REQUEST_SINCE = (_CLIENT_REQUEST, f"{_INTERNAL}ClientRequest.")
_WRITER = f"*{_BUNDLED}responseWriter"

_HTTP2 = (
    _http2_client("http2_client", _BUNDLED, _REQUEST_BEFORE, key=_BUNDLED, package=_CLIENT),
    _http2_client("http2_client", _INTERNAL, _REQUEST_SINCE, key=_BUNDLED, package=_CLIENT),
    _http2_server("http2_server", _BUNDLED, (_WRITER,), key=_BUNDLED, package=_SERVER),
    _http2_server(
        "http2_server",
        _INTERNAL,
        # a struct of one pointer around the response writer
        (_WRITER, "net/http.http2ResponseWriter"),
        key=_BUNDLED,
        package=_SERVER,
    ),
    _http2_client("x_http2_client", _X, ("net/http.Request.",), key=_X, package=_X_CLIENT),
    _http2_server("x_http2_server", _X, (f"*{_X}responseWriter",), key=_X, package=_X_SERVER),
)
_HTTP2_WRITE = (
    _http2_write("http2_write", _BUNDLED, key=_BUNDLED, package="the HTTP/2 of net/http"),
    _http2_write("http2_write", _INTERNAL, key=_BUNDLED, package="the HTTP/2 of net/http"),
    _http2_write("x_http2_write", _X, key=_X, package=f"{X_NET}/http2"),
)

# --- gRPC ---------------------------------------------------------------------------------------

_TRANSPORT = f"{GRPC}/internal/transport."
_STATUS = (
    (f"{GRPC}/internal/status.Status.s",),
    ("google.golang.org/genproto/googleapis/rpc/status.Status.Code",),
)


def _stream(side: str, *names: str) -> tuple[Group, ...]:
    """Fields of a stream of the transport, which before 1.69 is one type for both sides.

    Since 1.69 `Stream` is embedded in a type for each side, at first by a pointer. Where
    "ServerStream.*Stream" is known, these are offsets in the struct that the pointer leads to.
    """
    return tuple(
        (
            f"{_TRANSPORT}{side}.{name}",
            f"{_TRANSPORT}{side}.Stream.{name}",
            f"{_TRANSPORT}Stream.{name}",
        )
        for name in names
    )


# --- all features -------------------------------------------------------------------------------

FEATURES = (
    Feature(
        "goroutines",
        functions=(("runtime.newproc1",),),
        offsets=(
            *_each("runtime.g.", "goid", "m"),
            *_each("runtime.m.", "p", "curg"),
            *_each("runtime.p.", "goidcache", "goidcacheend"),
        ),
    ),
    Feature(
        "http_client",
        functions=(("net/http.(*persistConn).roundTrip",),),
        shared=(("net/http.readTransfer",),),
        offsets=(
            *_each("net/http.persistConn.", "conn", "tlsState", "alt", "br"),
            ("net/http.transportRequest.Request",),
            ("net/http.Response.StatusCode",),
            *_REQUEST,
            *_SOCKET,
        ),
        types=(*_CONNECTIONS, ("*net/http.Response",)),
        package="the client of net/http",
    ),
    Feature(
        "http_server",
        functions=(
            _SERVE,
            ("net/http.(*response).WriteHeader",),
            ("net/http.(*response).finishRequest",),
        ),
        offsets=(
            *_each("net/http.response.", "conn", "req", "status"),
            *_each("net/http.conn.", "rwc", "tlsState", "bufr"),
            *_REQUEST,
            *_SOCKET,
        ),
        types=(*_CONNECTIONS, ("*net/http.response",)),
        package="the server of net/http",
    ),
    *_HTTP2,
    Feature(
        "grpc_client",
        functions=(
            (f"{GRPC}.(*csAttempt).newStream",),
            (f"{GRPC}.(*clientStream).finish",),
        ),
        offsets=(
            (f"{GRPC}.csAttempt.cs",),
            (f"{GRPC}.csAttempt.transport", f"{GRPC}.csAttempt.t"),
            (f"{GRPC}.csAttempt.transportStream", f"{GRPC}.csAttempt.s"),
            *_each(f"{GRPC}.clientStream.", "callHdr", "ctx", "firstAttempt"),
            *_each(f"{_TRANSPORT}CallHdr.", "Host", "Method"),
            *_stream("ClientStream", "id"),
            (f"{_TRANSPORT}http2Client.conn",),
            # Before 1.40 `e`, which is the google.rpc.Status itself and needs one step less.
            (f"{GRPC}/internal/status.Error.s", f"{GRPC}/internal/status.Error.e"),
            *_STATUS,
            *_SOCKET,
        ),
        types=(
            *_CONNECTIONS,
            (f"*{_TRANSPORT}http2Client",),
            (f"*{GRPC}/internal/status.Error",),
            (f"{GRPC}/metadata.mdOutgoingKey",),
        ),
        package=f"the client of {GRPC}",
        modules=MODULES,
    ),
    Feature(
        "grpc_server",
        functions=(
            (f"{GRPC}.(*Server).handleStream",),
            (
                f"{_TRANSPORT}(*http2Server).writeStatus",
                f"{_TRANSPORT}(*http2Server).WriteStatus",
            ),
        ),
        offsets=(
            *_stream("ServerStream", "method", "ctx"),
            (f"{_TRANSPORT}ServerStream.st", f"{_TRANSPORT}Stream.st"),
            (f"{_TRANSPORT}http2Server.conn",),
            *_STATUS,
            *_SOCKET,
        ),
        types=(
            *_CONNECTIONS,
            (f"*{_TRANSPORT}http2Server",),
            (f"{GRPC}/metadata.mdIncomingKey",),
        ),
        package=f"the server of {GRPC}",
        modules=MODULES,
    ),
    # --- writing into requests
    Feature(
        "http_write",
        functions=(("net/http.(*persistConn).roundTrip",),),
        # Writes requests: servers write their answers by another function.
        shared=(("net/http.(*transferWriter).writeHeader",),),
        offsets=(
            *_each("bufio.Writer.", "buf", "n"),
            *(("net/http.persistConn.bw",), ("net/http.transferWriter.Header",)),
        ),
        types=(("*bufio.Writer",),),
        package="the client of net/http",
    ),
    *_HTTP2_WRITE,
    Feature(
        "grpc_write",
        # A caller puts its headers into a queue, from which another goroutine writes them.
        functions=(
            (f"{_TRANSPORT}(*controlBuffer).executeAndPut",),
            (f"{_TRANSPORT}(*loopyWriter).writeHeader",),
        ),
        shared=(_method(_X, "Framer", "WriteHeaders"),),
        offsets=(
            *_of((f"{_TRANSPORT}clientHeaders.", f"{_TRANSPORT}headerFrame."), "hf", "initStream"),
            (f"{_TRANSPORT}loopyWriter.cbuf",),
            (f"{_X}Framer.w",),
        ),
        types=((f"*{_TRANSPORT}clientHeaders", f"*{_TRANSPORT}headerFrame"),),
        package=GRPC,
        modules=MODULES,
        frame=True,
    ),
)

# Optional: kept where a program has them.
EXTRA = Feature(
    "",
    functions=(
        _method(_BUNDLED, "serverConn", "runHandler"),
        _method(_INTERNAL, "serverConn", "runHandler"),
        _method(_X, "serverConn", "runHandler"),
    ),
    offsets=(
        # Since Go 1.27 HTTP/2 has request types of its own.
        *_each(f"{_INTERNAL}ServerRequest.", "Method", "URL", "ProtoMajor", "Header", "Host"),
        *_each(f"{_INTERNAL}ServerRequest.", "RequestURI", "TLS", "Context"),
        *_each(f"{_INTERNAL}ClientRequest.", "Method", "URL", "Header", "Host", "Context"),
        *_each("runtime.g.", "parentGoid", "waitreason", "atomicstatus"),
        ("net/http.Response.Request",),
        # Since Go 1.26.
        ("net/http.persistConn.isClientConn",),
        *_of((_BUNDLED, _INTERNAL), "responseWriterState.req", "clientStream.res"),
        *_of((_X,), "responseWriterState.req", "clientStream.res"),
        *_each(f"{_TRANSPORT}", "ServerStream.*Stream", "ClientStream.*Stream"),
        (f"{_TRANSPORT}ClientStream.ct", f"{_TRANSPORT}Stream.ct"),
        (f"{GRPC}/internal/status.Error.e",),
        # Before 1.60, where operateHeaders is given a frame first; since then a context.
        (f"{_TRANSPORT}http2Server.ctx",),
        (f"{GRPC}.csAttempt.ctx",),
        ("fmt.wrapError.err",),
        # Of the buffers that HTTP/2 is written to.
        *_each("bufio.Writer.", "buf", "n"),
        *_each(f"{_TRANSPORT}bufWriter.", "buf", "bufHandle", "offset"),
    ),
    types=(
        *(("*net/http.Request",), ("*fmt.wrapError",)),
        *(("*bufio.Writer",), (f"*{_TRANSPORT}bufWriter",)),
    ),
)
