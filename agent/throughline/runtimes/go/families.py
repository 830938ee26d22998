"""Which program of go.bpf.o goes to which functions of Go, in families with offsets of their own.

HTTP/2 is in a program up to twice, each time with other layouts (wanted.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from throughline.runtimes.go.program import FunctionSite, Program
from throughline.runtimes.go.releases import GRPC

TRANSPORT = f"{GRPC}/internal/transport."
_WRITING = "tl_go_write_"  # the names of the programs of the group go_write begin with it

# program of go.bpf.o -> the feature that it belongs to, and the names of its function
Probes = Mapping[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Family:
    """A part of a program that has a struct tl_go_binary, so offsets, of its own."""

    probes: Probes
    # The start of the names of its offsets, where families differ.
    http2: str = "net/http.http2"
    request: str = "net/http.Request."


def _http2(feature: str, *packages: str) -> tuple[Probes, Probes]:
    """The probes of the server, and those of the client."""

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
                    f"{TRANSPORT}(*http2Server).writeStatus",
                    f"{TRANSPORT}(*http2Server).WriteStatus",
                ),
            ),
            "tl_go_rpc_call": ("grpc_client", (f"{GRPC}.(*csAttempt).newStream",)),
            "tl_go_rpc_end": ("grpc_client", (f"{GRPC}.(*clientStream).finish",)),
            "tl_go_write_put": (
                "grpc_write",
                (f"{TRANSPORT}(*controlBuffer).executeAndPut",),
            ),
            "tl_go_write_rpc": ("grpc_write", (f"{TRANSPORT}(*loopyWriter).writeHeader",)),
        }
    ),
)


def probed(
    program: Program, family: Family, *, write: bool = True, without: Collection[str] = ()
) -> Iterator[tuple[str, FunctionSite]]:
    """The programs of a family and where each is attached, for the features that a program has.

    `write`: the programs of the group go_write, too. `without`: programs that the kernel refuses. A
    feature that needs one of these is left out as a whole: half of it would give wrong spans.
    """
    refused = {feature for probe, (feature, _) in family.probes.items() if probe in without}
    for probe, (feature, functions) in family.probes.items():
        if feature in program.missing or feature in refused:
            continue
        if write or not probe.startswith(_WRITING):
            for function in functions:
                if function in program.sites:
                    yield probe, program.sites[function]
