"""Fixtures of several files of kernel tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fixtures.operated import Operated
from tests.fixtures.outside import Outside
from tests.fixtures.secure import Secure
from tests.fixtures.service import World, traced_service
from tests.fixtures.traced import Traced


@pytest.fixture
def traced() -> Iterator[Operated]:
    """A corner with an agent, for one test."""
    with Operated() as found:
        yield found


@pytest.fixture
def host() -> Iterator[Operated]:
    """A corner without an agent, for one test."""
    with Operated(start=False) as found:
        yield found


@pytest.fixture
def secure(traced: Traced) -> Secure:
    """What starts HTTPS services in the corner."""
    return Secure(traced)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """An agent, a service that it traces, and what makes sockets outside of it; for one file."""
    with traced_service() as found:
        yield found


@pytest.fixture
def outside(world: World) -> Outside:
    """What makes sockets outside of the traced cgroup."""
    return world[2]


@pytest.fixture
def far_listener(world: World) -> Iterator[socket.socket]:
    """A listener outside of the traced cgroup: the far side of calls."""
    with world[-1].listen() as found:
        yield found
