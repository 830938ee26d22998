"""An asyncio service (streams): PORT NEXT_PORT MODE. Passes each request on, in a task of its own.

MODE `now` calls on at once, `later` after 0 to 10 ms.
"""

import asyncio
import random
import sys

PORT, NEXT, MODE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            if MODE == "later":
                await asyncio.sleep(random.random() / 100)
            back, out = await asyncio.open_connection("127.0.0.1", NEXT)
            out.write(b"GET " + path + b" HTTP/1.1\r\nHost: next\r\n\r\n")
            await back.readuntil(b"\r\n\r\nok")
            out.close()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=512)
    await server.serve_forever()


asyncio.run(main())
