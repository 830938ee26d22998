"""The load for applications that are asked by gRPC: the method's name is the path."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

from tests.fixtures.waiting import START_SECONDS
from tests.parents.app import Behaviour

LONGEST_SECONDS = 60.0 * max(1.0, START_SECONDS / 60)  # an emulated machine is slow


def drive(port: int, behaviour: Behaviour, numbers: range, *, concurrent: int) -> list[str]:
    """Calls `/bench.Bench/BEHAVIOUR` with each number as the message. Returns what failed."""
    failures: list[str] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/bench.Bench/{behaviour.value}")

        def ask(number: int) -> None:
            try:
                call(str(number).encode(), timeout=20)
            except grpc.RpcError as error:
                failures.append(f"{number}: {error!r}")

        with ThreadPoolExecutor(concurrent) as pool:
            list(pool.map(ask, numbers, timeout=LONGEST_SECONDS))
    return failures
