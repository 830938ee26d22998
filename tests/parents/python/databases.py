"""The database that requests ask, through a pool of four connections that all of them share.

It is Redis, or PostgreSQL where POSTGRES_PORT is set: by psycopg in threads, by asyncpg in tasks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

_CONNECTIONS = 4
_QUESTION = "SELECT pg_sleep(0.001)"


def _postgres() -> dict[str, Any] | None:
    port = os.environ.get("POSTGRES_PORT")
    return {"host": "127.0.0.1", "port": int(port), "user": "postgres"} if port else None


def _redis() -> dict[str, int]:
    return {"port": int(os.environ["REDIS_PORT"]), "max_connections": _CONNECTIONS}


def for_threads() -> Callable[[], object]:
    """Returns what a thread calls for a request."""
    postgres = _postgres()
    if postgres is None:
        import redis

        client = redis.Redis(connection_pool=redis.BlockingConnectionPool(**_redis()))
        return lambda: client.get("key")
    from psycopg_pool import ConnectionPool

    pool = ConnectionPool(kwargs=postgres, min_size=_CONNECTIONS, max_size=_CONNECTIONS, open=True)

    def ask() -> None:
        with pool.connection() as connection:
            connection.execute(_QUESTION).fetchall()

    return ask


@contextlib.asynccontextmanager
async def for_tasks() -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yields what a task awaits for a request."""
    postgres = _postgres()
    if postgres is None:
        import redis.asyncio as redis

        client = redis.Redis(connection_pool=redis.BlockingConnectionPool(**_redis()))
        yield lambda: client.get("key")
        return
    import asyncpg

    sizes = {"min_size": _CONNECTIONS, "max_size": _CONNECTIONS}
    async with asyncpg.create_pool(**postgres, **sizes) as pool:
        yield lambda: pool.fetch(_QUESTION)
