"""What several files of kernel tests begin with."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fixtures.outside import Outside
from tests.fixtures.service import Service, traced_service
from tests.fixtures.traced import Traced


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Traced, Service, Outside]]:
    """An agent, a service that it traces, and sockets of the world outside; for one file."""
    with traced_service() as found:
        yield found


@pytest.fixture
def far_listener(world: tuple[Traced, Service, Outside]) -> Iterator[socket.socket]:
    """Listens outside."""
    with world[2].listen() as found:
        yield found
