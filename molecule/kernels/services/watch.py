"""Runs tools of BCC beside requests to the shop. Prints what they show as one JSON object.

watch.py PREFIX SPANS     as client.py carts
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = {"tcptracer": "/usr/sbin/tcptracer-bpfcc", "tcplife": "/usr/sbin/tcplife-bpfcc"}
READY_SECONDS = 240.0  # each tool compiles its program, which takes an emulated processor a minute
CLOSE_SECONDS = 2.0
FOLDER = Path(tempfile.mkdtemp())


def start(name: str) -> subprocess.Popen[bytes]:
    """Starts a tool. It writes its first line when it is ready."""
    with (FOLDER / f"{name}.out").open("wb") as out, (FOLDER / f"{name}.err").open("wb") as err:
        return subprocess.Popen(["python3", "-u", TOOLS[name]], stdout=out, stderr=err)


def wait_ready(running: dict[str, subprocess.Popen[bytes]]) -> float:
    """The seconds until all tools are ready. Raises SystemExit with the output of a failed tool."""
    begin = time.monotonic()
    for name, process in running.items():
        while (FOLDER / f"{name}.out").stat().st_size == 0:
            if process.poll() is not None or time.monotonic() - begin > READY_SECONDS:
                raise SystemExit(f"{name}: {(FOLDER / f'{name}.err').read_text()[-600:]}")
            time.sleep(0.5)
    return time.monotonic() - begin


def rows(name: str) -> list[dict[str, str]]:
    """The lines of a tool's table, by the titles of its columns."""
    lines = (FOLDER / f"{name}.out").read_text().splitlines()
    head = next(number for number, line in enumerate(lines) if "COMM" in line.split())
    names = lines[head].split()
    return [dict(zip(names, line.split(), strict=True)) for line in lines[head + 1 :] if line]


def unit(pid: str) -> str:
    """The systemd unit of a process; "" for one that has ended or has no unit."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    found = re.search(r"^0::.*/([^/]+)\.service$", text, re.MULTILINE)
    return found[1] if found else ""


running = {name: start(name) for name in TOOLS}
try:
    ready = wait_ready(running)
    words = [sys.executable, str(Path(__file__).with_name("client.py")), "carts", *sys.argv[1:]]
    client = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    time.sleep(CLOSE_SECONDS)
finally:
    for process in running.values():
        process.send_signal(signal.SIGINT)
        process.wait(30)
tables = {name: rows(name) for name in TOOLS}
pids = {row["PID"] for table in tables.values() for row in table}
units = {pid: unit(pid) for pid in pids}
print(json.dumps({"client": client, "units": units, "ready": round(ready, 1), **tables}))
