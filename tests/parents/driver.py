"""The load: requests with numbers, so many at a time, on connections that are kept.

The bytes are written here, since bodies come in parts that an HTTP library would not send.
"""

from __future__ import annotations

import asyncio
import re
import ssl

from tests.fixtures.waiting import START_SECONDS
from tests.parents.app import Behaviour

LONGEST_SECONDS = 60.0 * max(1.0, START_SECONDS / 60)  # an emulated machine is slow
_LARGE = b"x" * 100_000
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close", re.IGNORECASE)


def calls_after_answer(number: int) -> bool:
    """Whether a request of the behaviour *after* is answered first. The others call at once."""
    return number % 2 == 1


def parts(behaviour: Behaviour, number: int) -> list[bytes]:
    """A request, in the pieces in which it is sent with pauses between them."""
    match behaviour:
        case Behaviour.AFTER:
            return [_get("after" if calls_after_answer(number) else "at-once", number)]
        case Behaviour.POLLER:
            return [_get("sleep" if number % 2 else "at-once", number)]
        case Behaviour.BODY:
            return _with_body(number)
        case _:
            return [_get(behaviour.value, number)]


def _get(path: str, number: int) -> bytes:
    return f"GET /{path}?id={number} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


def _post(number: int, length: int) -> bytes:
    return (
        f"POST /body?id={number} HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def _with_body(number: int) -> list[bytes]:
    match number % 3:
        case 0:
            return [_get("at-once", number)]
        case 1:
            return [_post(number, len(_LARGE)) + _LARGE]
        case _:
            head = _post(number, 30)
            return [head[:40], head[40:], b"a" * 10, b"b" * 10, b"c" * 10]


class _Failed(Exception):  # noqa: N818 (it never leaves this file)
    pass


class _Client:
    """One connection, opened again where the server closes it."""

    def __init__(self, port: int, *, secure: bool) -> None:
        self._port = port
        self._secure = ssl.create_default_context() if secure else None
        if self._secure is not None:  # the certificate is the application's own
            self._secure.check_hostname = False
            self._secure.verify_mode = ssl.CERT_NONE
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, pieces: list[bytes]) -> None:
        """Sends a request, a second time where RFC 9112 (9.3.1) lets a client do that.

        A server may close a kept connection while a request is on its way. Apache did that to 2 of
        12,072 requests without an agent.
        """
        kept = self._stream is not None
        try:
            await self._ask(pieces)
        except (ConnectionResetError, asyncio.IncompleteReadError) as error:
            answered = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if not kept or answered or not pieces[0].startswith(b"GET "):
                raise
            self.close()
            await self._ask(pieces)

    async def _ask(self, pieces: list[bytes]) -> None:
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._secure)
        reader, writer = self._stream
        for place, piece in enumerate(pieces):
            if place:
                await asyncio.sleep(0.002)
            writer.write(piece)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        kept = b"HTTP/1.1" in head[:8] and not _CLOSE.search(head)
        if _CHUNKED.search(head):
            while size := int((await reader.readline()).split(b";")[0], 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        elif found := _LENGTH.search(head):
            await reader.readexactly(int(found[1]))
        else:
            await reader.read()
            kept = False
        if not kept:
            self.close()
        if head.split(b" ", 2)[1] != b"200":
            raise _Failed(head.partition(b"\r\n")[0].decode(errors="replace"))

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


async def _drive(
    port: int, behaviour: Behaviour, numbers: range, concurrent: int, *, secure: bool
) -> list[str]:
    failures: list[str] = []
    remaining = iter(numbers)

    async def client() -> None:
        connection = _Client(port, secure=secure)
        for number in remaining:
            try:
                await asyncio.wait_for(connection.ask(parts(behaviour, number)), START_SECONDS)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, _Failed) as error:
                failures.append(f"{number}: {error!r}")
                connection.close()
                if len(failures) > 20:
                    return
        connection.close()

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(concurrent))), LONGEST_SECONDS)
    return failures


def drive(
    port: int, behaviour: Behaviour, numbers: range, *, concurrent: int, secure: bool = False
) -> list[str]:
    """Sends a request for each number, by HTTPS where `secure`. Returns what failed."""
    return asyncio.run(_drive(port, behaviour, numbers, concurrent, secure=secure))
