"""The far side of all calls: `backend.py PORT`. Answers after 0 to 3 ms, and notes each request.

`GET /taken` answers with a JSON list of [target, traceparent or ""]: what came since the last one.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CONTEXT = re.compile(rb"\r\ntraceparent:\s*([^\r]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close", re.IGNORECASE)
_KEEP = re.compile(rb"\r\nconnection:[^\r]*keep-alive", re.IGNORECASE)
_NUMBER = re.compile(r"[?&]id=(\d+)")

taken: list[tuple[str, str]] = []


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await _answer(reader, writer):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answers one request. Returns whether the connection is kept."""
    head = await reader.readuntil(b"\r\n\r\n")
    await _skip_body(reader, head)
    line, _, _ = head.partition(b"\r\n")
    target = line.split(b" ")[1].decode()
    keep = not _CLOSE.search(head) and (b"HTTP/1.1" in line or bool(_KEEP.search(head)))
    if target == "/taken":
        body = json.dumps(taken).encode()
        taken.clear()
    else:
        found = _CONTEXT.search(head)
        taken.append((target, found[1].decode() if found else ""))
        number = _NUMBER.search(target)
        await asyncio.sleep(int(number[1]) % 4 / 1000 if number else 0)
        body = b"ok\n"
    kept = b"keep-alive" if keep else b"close"
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"Connection: %s\r\n\r\n%s" % (len(body), kept, body)
    )
    return keep


async def _skip_body(reader: asyncio.StreamReader, head: bytes) -> None:
    if _CHUNKED.search(head):
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    elif found := _LENGTH.search(head):
        await reader.readexactly(int(found[1]))


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
