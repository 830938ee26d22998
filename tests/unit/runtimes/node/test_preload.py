"""The preload and the BPF programs agree, and the file does no harm where it cannot work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT, SERVICES

PRELOAD = CHECKOUT / "agent/bundle/release/share/node/context.cjs"
HEADER = CHECKOUT / "bpf/runtimes/node.h"
SHOWN = SERVICES / "shown.cjs"  # sees what the preload shows and tells
DISPATCHES = SERVICES / "dispatches.cjs"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def run(
    *words: str, preload: Path = PRELOAD, first: Path | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """`first`: what is loaded in front of the preload."""
    loaded = [path for path in (first, preload) if path]
    command = [str(NODE), *(f"--require={path}" for path in loaded), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


def test_both_name_the_same_numbers() -> None:
    header, preload = HEADER.read_text(), PRELOAD.read_text()
    (magic,) = re.findall(r"TL_NODE_MAGIC (0x[0-9a-f]+)ULL", header)
    (position,) = re.findall(r"TL_NODE_POSITION (0x[0-9a-f]+)ULL", header)
    ((low, high),) = re.findall(r"MAGIC = \[(0x[0-9a-f]+), (0x[0-9a-f]+)\]", preload)
    assert int(high, 16) << 32 | int(low, 16) == int(magic, 16)
    assert re.findall(r"POSITION = (0x[0-9a-f]+)", preload) == [position]


def test_an_old_release_can_parse_the_file() -> None:
    """What came after ECMAScript 2015 is not used."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|'[^'\n]*'", "", PRELOAD.read_text(), flags=re.DOTALL)
    for pattern in (r"\?\?", r"\?\.", r"\basync\b", r"\bawait\b", r"catch \{", r"\.\.\.", r"\*\*"):
        assert not re.search(pattern, text), pattern


@needs_node
@pytest.mark.parametrize(
    "code",
    [
        "console.log(1)",
        # what a library may do to the modules that the preload has got
        "require('fs').openSync = () => { throw new Error('no') }; console.log(1)",
        "process.hrtime = undefined; console.log(1)",
    ],
)
def test_a_program_goes_on(code: str) -> None:
    done = run("-e", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


SERVER = """
const server = http.createServer((request, response) => response.end('ok'));
server.listen(0, '127.0.0.1', () => {
  http.get({ port: server.address().port }, (response) => {
    response.on('data', (text) => console.log(String(text)));
    response.on('end', () => process.exit());
  });
});
"""


@needs_node
@pytest.mark.parametrize(
    "before",
    [
        "",
        "delete require('net').Socket.prototype._writev;",
        "require('fs').openSync = () => { throw new Error('no') };",
        "Object.freeze(require('tls'));",
    ],
)
def test_a_server_answers(before: str) -> None:
    done = run("-e", f"const http = require('http'); {before}{SERVER}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def told(before: str) -> list[int]:
    """How often a server tells during three connections, and the flags with which it opens."""
    code = f"""
const net = require('net');
const {{ opened, told }} = require({str(SHOWN)!r});
{before}
const server = net.createServer((socket) => socket.end());
function connect(count) {{
  if (count) {{
    const socket = net.connect(server.address().port, '127.0.0.1');
    socket.resume().on('close', () => setTimeout(connect, 150, count - 1));
    return;
  }}
  console.log(JSON.stringify([told(), ...new Set(opened)]));
  process.exit();
}}
server.listen(0, '127.0.0.1', () => connect(3));
"""
    done = run("-e", code, first=SHOWN)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[int] = json.loads(done.stdout)
    return found


@needs_node
def test_a_process_tells_with_its_connections_and_creates_no_file() -> None:
    count, *flags = told("")
    assert count >= 3
    assert flags == [os.O_WRONLY]


@needs_node
def test_a_process_that_cannot_be_followed_tells_nothing() -> None:
    assert told("delete net.Socket.prototype._writev;") == [0]


@needs_node
def test_what_an_application_makes_of_fs_is_not_called() -> None:
    """Libraries for tracing and for tests replace its functions."""
    names = "'openSync', 'writeSync', 'closeSync'"
    count, *_ = told(f"for (const name of [{names}]) require('fs')[name] = () => 0;")
    assert count >= 3


@needs_node
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("waiting", [1, 2, 3, 4]),
        ("bound", [1, 2, 3, 4]),
        ("plain", [1, 2, 3]),
        ("destroyed", [1, 2, 4, 5]),
        ("closed", [1, 3, 4]),
        ("subclass", [1, 2, 3, "third of 1", "third of 2", "third of 3"]),
    ],
)
def test_calls_of_undici_are_shown_for_their_requests(
    scenario: str, expected: list[int | str]
) -> None:
    """The copy of Node.js itself. Those of packages: tests/kernel/runtimes/test_node.py."""
    done = run(str(DISPATCHES), scenario, first=SHOWN)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected


@needs_node
def test_a_process_that_cannot_tell_at_first_is_followed() -> None:
    """It may have no descriptor free when the first connection comes."""
    environment = {**os.environ, "FIRST_FAILS": "1"}
    done = run(str(DISPATCHES), "waiting", first=SHOWN, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1,2,3,4]\n", "")


@needs_node
def test_nothing_is_loaded_where_no_connection_comes() -> None:
    code = (
        "console.log(process.moduleLoadList.filter((m) => /NativeModule (http|net|tls)$/.test(m)))"
    )
    plain = subprocess.run([str(NODE), "-e", code], capture_output=True, text=True, timeout=60)
    assert run("-e", code).stdout == plain.stdout


@needs_node
def test_the_copy_for_a_service_without_the_file_is_a_program(tmp_path: Path) -> None:
    """SetCredential= of the drop-in."""
    copy = tmp_path / "throughline-context.cjs"
    copy.write_text("0")
    assert run("-e", "console.log(1)", preload=copy).stdout == "1\n"
