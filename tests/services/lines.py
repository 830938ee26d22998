"""A cache that speaks lines, on asyncio: PORT. Answers each line after 0 to 2 ms."""

import asyncio
import random
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readline():
        await asyncio.sleep(random.random() / 500)
        writer.write(b"value\n")


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
