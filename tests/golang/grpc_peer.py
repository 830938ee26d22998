"""A gRPC server of C-core, which is not Go's: answers as the services of the tests do.

    python -m tests.golang.grpc_peer PORT FILE

Appends the metadata of each call to FILE, a line of JSON each: [[name, value], …] in their order.
"""

from __future__ import annotations

import json
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc


def _field(number: int, value: bytes) -> bytes:
    """A field of protobuf that has a length, of less than 16 KB."""
    head = bytes([number << 3 | 2])
    low, high = len(value) & 0x7F, len(value) >> 7
    return head + (bytes([low | 0x80, high]) if high else bytes([low])) + value


def _path(request: bytes) -> str:
    """The first field of hops.Request, a string of less than 16 KB."""
    at, length = 2, request[1]
    if length & 0x80:
        at, length = 3, length & 0x7F | request[2] << 7
    return request[at : at + length].decode()


class _Hops(grpc.GenericRpcHandler):
    def __init__(self, record: Path) -> None:
        self._record = record

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: Any) -> bytes:
        metadata = [[name, str(value)] for name, value in context.invocation_metadata()]
        with self._record.open("a") as record:
            record.write(json.dumps(metadata) + "\n")
        kind, number = _path(request).strip("/").split("/")
        seen = [value.encode() for name, value in metadata if name == "traceparent"]
        return b"".join(
            [_field(1, number.encode()), _field(2, kind.encode()), *(_field(3, v) for v in seen)]
        )


def main(port: str, record: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((_Hops(Path(record)),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
