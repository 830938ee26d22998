"""What the bench of parents runs: applications, and how they behave. README.md has the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Behaviour(Enum):
    """What an application does for a request. The value is the path, and the column's name."""

    AT_ONCE = "at-once"
    SLEEP = "sleep"
    DATABASE = "database"
    TWO = "two"
    POOL = "pool"
    AFTER = "after"
    BODY = "body"
    POLLER = "poller"


# What is measured where nothing else is said: what a proxy does, and what a service does.
PROXY = (Behaviour.AT_ONCE, Behaviour.BODY)
SERVICE = tuple(one for one in Behaviour if one is not Behaviour.POOL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one instance of an application runs. All ports are of 127.0.0.1."""

    port: int  # it listens here
    spare: int  # free, for a second service
    backend: int  # it calls here, and names the host as 127.0.0.1
    redis: int
    postgres: int  # 0: the application does not use it
    folder: Path  # its own, empty, writable for every user; gone afterwards

    @property
    def environment(self) -> dict[str, str]:
        """What every process of an application gets."""
        postgres = {"POSTGRES_PORT": str(self.postgres)} if self.postgres else {}
        return {
            "PORT": str(self.port),
            "BACKEND": f"http://127.0.0.1:{self.backend}",
            "REDIS_PORT": str(self.redis),
            **postgres,
        }


@dataclass(frozen=True, slots=True)
class Process:
    """One service of an application, in a cgroup of its own.

    `name` tells the services of one application apart; "" where there is only one. `listens` is the
    socket file or the port of 127.0.0.1 that accepts connections when it is ready; else it is ready
    when it listens on `Place.port`.
    """

    command: Sequence[str]
    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    listens: Path | int | None = None


class MissingError(Exception):
    """An application cannot be installed here. The message is the reason, which is reported."""


@dataclass(frozen=True, slots=True)
class App:
    """One application: a runtime with a framework.

    `name` is short and unique: the service's name begins with it. `runtime` and `title` head its
    row. `install` brings what is missing, pinned and cached, says nothing when there is nothing to
    do, and raises MissingError. `start` writes configuration files and returns the application's
    services in the order in which a request passes them; the last one makes the calls.
    `protocol` is what the driver speaks: "http", "https" or "grpc". `follows` is the group by which
    the agent follows such processes, as `status` names it; nothing is sent before it does.
    `accepts`: nor before the agent has told the programs which thread of it accepts.
    `postgres`: its database is PostgreSQL instead of Redis.
    """

    name: str
    runtime: str
    title: str
    start: Callable[[Place], Sequence[Process]]
    behaviours: Sequence[Behaviour] = SERVICE
    install: Callable[[], None] = lambda: None
    protocol: str = "http"
    follows: str = ""
    accepts: bool = False
    postgres: bool = False
