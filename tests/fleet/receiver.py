"""The receiver by hand: `python -m tests.fleet.receiver --html build/trace.html`.

It listens on 127.0.0.1:4318, prints every trace as a tree, and writes the waterfall on Ctrl-C.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path

from tests.fixtures import spans as decoding
from tests.fixtures.receiver import Receiver
from tests.fleet import tree, waterfall


def main() -> int:
    """Receives and prints until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.receiver", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4318)
    parser.add_argument("--html", type=Path, help="write the waterfall here at the end")
    arguments = parser.parse_args()
    with Receiver(socket.create_server((arguments.host, arguments.port))) as receiver:
        print(f"receiver: {receiver.endpoint}, Ctrl-C ends", file=sys.stderr, flush=True)
        shown = 0
        try:
            while True:
                time.sleep(0.5)
                spans = receiver.spans
                fresh, shown = {span.trace_id for span in spans[shown:]}, len(spans)
                for trace_id, trace in decoding.by_trace(spans).items():
                    if trace_id in fresh:
                        print(f"\n{trace_id}", *tree.lines(trace), sep="\n", flush=True)
        except KeyboardInterrupt:
            if arguments.html:
                waterfall.write(arguments.html, receiver.spans)
                print(f"receiver: {arguments.html}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
