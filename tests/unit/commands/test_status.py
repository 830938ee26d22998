"""The status that an operator sees: whether there is one, how it is printed, the exit code."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from throughline.agent.status import StatusWriter
from throughline.commands import node, status
from throughline.commands.output import text as printed


def running(**changes: Any) -> dict[str, Any]:
    now = time.time()
    values: dict[str, Any] = {
        "version": "0.1.0",
        "pid": os.getpid(),
        "started_unix": now - 3700,
        "updated_unix": now,
        "healthy": True,
        "groups": {"observe": {"state": "on"}, "headers": {"state": "off", "reason": "EBUSY"}},
        "attached": {
            "programs": [
                {"name": "tl_egress", "type": "cgroup_skb", "where": "system.slice", "id": 7}
            ]
        },
        "counters": {"pipelined": 3, "none": 0},
        "services": {
            "shop": {
                "unit": "shop.service",
                "server": {"requests": 23, "errors": 1, "sampled": 20},
                "client": {"requests": 5, "errors": 0, "sampled": 5},
            }
        },
        "export": {
            "exported_spans": 25,
            "spool_bytes": 0,
            "dropped": {"refused": 2},
            "last_error": "",
        },
    }
    return {**values, **changes}


def shown(found: dict[str, Any]) -> str:
    return printed(status.lines(found))


def test_written_is_read(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path / "status.json")
    writer.write(running())
    found = status.read(writer.path)
    assert found is not None
    assert found["services"]["shop"]["server"]["requests"] == 23
    assert writer.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    writer.remove()
    writer.remove()
    assert status.read(writer.path) is None


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path / "status.json")
    counters = {f"reason {number}": number for number in range(2000)}
    writer.write(running(counters=counters))
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            writer.write(running(counters=counters))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(status.read(writer.path) for _ in range(200))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"pid": "x"}', '{"pid": 1}'])
def test_what_is_no_status_is_not_running(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert status.read(tmp_path / "status.json") is None


def test_stale_or_dead_is_not_running(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path / "status.json")
    writer.write(running(updated_unix=time.time() - 6))
    assert status.read(writer.path) is None
    child = subprocess.Popen(["true"])
    child.wait()
    writer.write(running(pid=child.pid))
    assert status.read(writer.path) is None
    writer.write(running(updated_unix=time.time() + 1000, pid=child.pid))
    assert status.read(writer.path) is None


def test_exit_codes() -> None:
    assert status.exit_code(None) == 3
    assert status.exit_code(running()) == 0
    assert status.exit_code(running(healthy=False)) == 1


def test_text() -> None:
    text = shown(running())
    assert "throughline 0.1.0: healthy, up 1h 1m" in text
    assert "headers        off (EBUSY)" in text
    assert "tl_egress  cgroup_skb at system.slice" in text
    assert "dropped: refused  2" in text
    assert "pipelined  3" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("shop")]
    assert lines == [["shop", "server", "23", "1", "20"], ["shop", "client", "5", "0", "5"]]
    assert "Parents of its calls" not in text
    parents = {"proven": 4, "likely": 0, "none": {"ended": 1}, "contradicted": {}}
    text = shown(running(services={"shop": {"unit": "", "parents": parents}}))
    assert "Service  Parents of its calls\nshop     4 proven, 0 likely, 1 none (ended 1)\n" in text
    bare = {"pid": 1, "updated_unix": 1.0, "version": "0.1.0"}
    assert "No service has been seen yet." in shown(bare)


def test_text_of_packets_and_tls() -> None:
    places: list[dict[str, Any]] = [
        {"interface": f"veth{n}", "by": "tcx", "priority": None} for n in range(10)
    ]
    places.append({"interface": "eth0", "by": "clsact", "priority": 2})
    packets = {
        "peers": ["10.1.0.0/16", "fd00:1::/64"],
        "new_connections": ["/system.slice"],
        "older_connections": places,
        "refused": {"tun0": "no"},
    }
    files = [
        {
            "path": "/a",
            "programs": ["x"] * 4,
            "processes": 5,
            "single_stepped": False,
            "refused": "",
        },
        {
            "path": "/b",
            "programs": ["x"] * 2,
            "processes": 1,
            "single_stepped": True,
            "refused": "",
        },
        {
            "path": "/c",
            "programs": ["x"] * 2,
            "processes": 1,
            "single_stepped": False,
            "refused": "why",
        },
    ]
    text = shown(running(packets=packets, tls={"files": files}))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "connection made since the agent started sock_ops at /system.slice" in rows
    names = ", ".join(f"veth{n}" for n in range(8))
    assert f"older connection TC by tcx: {names} and 2 more" in rows
    assert "older connection TC by clsact at priority 2: eth0" in rows
    assert "older connection by tun0 none: no" in rows
    assert "written to and read from 10.1.0.0/16, fd00:1::/64" in rows
    assert "/a 5 processes, 4 sites" in rows
    assert "/b 1 processes, 2 sites, single-stepped" in rows
    assert "/c none: why" in rows
    text = shown(running(packets=None, tls={"files": []}))
    assert "TCP options" not in text and "none is executed by a traced process" in text
    assert "Go program" not in text


def test_text_of_go_programs() -> None:
    file = {
        "path": "/usr/bin/shop",
        "programs": ["tl_go_serve"] * 9,
        "single_stepped": False,
        "processes": 2,
        "refused": "",
        "version": "go1.22.10",
    }
    text = shown(running(go={"files": [file]}))
    assert "\n\nGo program\n/usr/bin/shop  go1.22.10, 2 processes, 9 sites\n" in text
    assert "TLS in file" not in text


def test_text_of_services_of_node() -> None:
    def unit(preload: str, reason: str = "") -> dict[str, Any]:
        return {"processes": 2, "preloaded": 1, "preload": preload, "reason": reason}

    file = {
        "path": "/usr/bin/node",
        "programs": [],
        "single_stepped": False,
        "processes": 8,
        "refused": "",
        "preloaded": 1,
        "units": {
            "a.service": unit("active"),
            "b.service": unit("not_restarted"),
            "c.service": unit("refused", "it runs as root"),
            "d.service": unit("not_configured"),
            "": unit("no_service"),
            "e.service": unit("of a later release"),
        },
    }
    found = running(node={"files": [file]})
    text = shown(found)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    start = rows.index("Service of Node.js Preload")
    assert rows[start + 1 : start + 7] == [
        "(no unit) none: it is no service of the host's systemd",
        "a.service active",
        "b.service configured, but the service runs without it: restart it when it suits you",
        "c.service none: it runs as root",
        "d.service none: name it in throughline_node_services, and its calls would have the request"
        " that made them as parent",
        "e.service of a later release",
    ]
    assert node.to_restart(found) == ["b.service"]
    del file["units"]
    assert "Service of Node.js" not in shown(running(node={"files": [file]}))
    assert "Service of Node.js" not in shown(running(node=None))
