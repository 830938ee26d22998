"""What each feature needs of a Go binary, and under which names it is known where.

A name stands for all its alternatives: the offset of `Field("net/http.http2clientStream.ID",
"net/http/internal/http2.clientStream.ID")` is kept under the first of them, whichever the binary
has. Functions keep the name that they have in the binary. Names are those of the sources of Go 1.18
to 1.27, see tests/unit/test_golang_versions.py.
"""

from __future__ import annotations

from dataclasses import dataclass

OLDEST_MINOR, NEWEST_MINOR = 18, 27  # of Go 1


@dataclass(frozen=True, slots=True)
class Feature:
    """All of it must be there. Each entry: names that mean the same, the key first."""

    name: str
    functions: tuple[tuple[str, ...], ...]
    offsets: tuple[tuple[str, ...], ...] = ()
    types: tuple[tuple[str, ...], ...] = ()
    # a package without which the program has no use for the feature
    package: str = ""


def _each(prefix: str, *names: str) -> tuple[tuple[str, ...], ...]:
    return tuple((prefix + name,) for name in names)


_SOCKET = (
    *_each("net.TCPConn.", "conn.fd"),
    *_each("net.netFD.", "pfd.Sysfd"),
    *_each("crypto/tls.Conn.", "conn"),
)
_CONNECTIONS = _each("*", "net.TCPConn", "crypto/tls.Conn")
_REQUEST = (
    *_each("net/http.Request.", "Method", "URL", "ProtoMajor", "Header", "Host", "RequestURI"),
    *_each("net/http.Request.", "TLS", "ctx"),
    *_each("net/url.URL.", "Scheme", "Host", "Path", "RawQuery"),
)
_SERVE = ("net/http.serverHandler.ServeHTTP",)

# Taken where it is there, not missed where it is not.
EXTRA = Feature(
    "",
    functions=(),
    offsets=(
        *_each("runtime.g.", "parentGoid", "waitreason", "atomicstatus"),
        ("net/http.Response.Request",),
    ),
    types=(("*net/http.Request",),),
)

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
        functions=(("net/http.(*persistConn).roundTrip",), ("net/http.readTransfer",)),
        offsets=(
            *_each("net/http.persistConn.", "conn", "tlsState", "alt", "br"),
            ("net/http.transportRequest.Request",),
            ("net/http.Response.StatusCode",),
            *_REQUEST,
            *_SOCKET,
        ),
        types=(*_CONNECTIONS, ("*net/http.Response",)),
        package="net/http",
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
        package="net/http",
    ),
)


def split(field: str) -> tuple[str, str]:
    """The struct and the path within: "net.netFD.pfd.Sysfd" is "pfd.Sysfd" of "net.netFD"."""
    start = field.rfind("/") + 1
    package, name, path = field[start:].split(".", 2)
    return f"{field[:start]}{package}.{name}", path
