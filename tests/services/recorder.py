"""The far side of calls, on asyncio: PORT FILE. Writes lines of path and traceparent into FILE.

It answers after 0 to 5 ms. The answer to a path that starts with /split comes in two parts.

Not traced itself. It parses only GET requests, on kept connections.
"""

import asyncio
import random
import sys
from pathlib import Path


class Recorder(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
            lines = head.split(b"\r\n")
            found = [
                line.partition(b":")[2].strip()
                for line in lines[1:]
                if line.lower().startswith(b"traceparent:")
            ]
            path = lines[0].split(b" ")[1]
            record.write(path + b" " + b",".join(found) + b"\n")
            record.flush()
            parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", b"k"]
            if not path.startswith(b"/split"):
                parts = [b"".join(parts)]
            later = 0.0
            for part in parts:
                later += random.random() / 200
                asyncio.get_running_loop().call_later(later, self.transport.write, part)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Recorder, "127.0.0.1", int(sys.argv[1]), backlog=512)
    await server.serve_forever()


with Path(sys.argv[2]).open("wb") as record:
    asyncio.run(main())
