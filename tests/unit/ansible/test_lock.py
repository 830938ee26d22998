"""The lock of a host: one run has it, and no run that has ended keeps it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.plugins import plugin

MINUTE = 60.0


def claim(name: str) -> dict[str, Any]:
    holder = f"{name} on ctl (process 1)"
    return {"run": name, "holder": holder, "controller": None, "pid": 1, "started": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "throughline.lock"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_one_run_has_it_until_it_frees_it(path: Path) -> None:
    lock = plugin("module_utils.lock")
    assert lock.take(claim("one"), seconds=MINUTE, path=path) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert lock.take(claim("two"), seconds=MINUTE, path=path)["run"] == "one"
    assert lock.other_run("two", path=path)["run"] == "one"
    assert lock.other_run("one", path=path) is None
    assert not lock.free("two", path=path), "it is not two's to free"
    assert lock.take(claim("one"), seconds=MINUTE, path=path) is None, "the same run keeps it"
    assert lock.free("one", path=path)
    assert not path.exists()
    assert not lock.free("one", path=path), "a second time"
    assert lock.take(claim("two"), seconds=MINUTE, path=path) is None


def test_the_message_says_who_since_when_and_what_to_do(path: Path) -> None:
    lock = plugin("module_utils.lock")
    lock.take(claim("one"), seconds=30 * MINUTE, path=path)
    now = lock.boot_time()
    change(path, taken=now - 3.5 * MINUTE, until=now + 26.5 * MINUTE)
    said = lock.describe(lock.other_run("two", path=path), path=path)
    assert said == (
        "Found another run at work on this host: one on ctl (process 1), for 3 min. Required:"
        " one run at a time. Remedy: wait until it has ended. If it was killed, remove"
        f" {path} on the host, which counts for 27 min more."
    )


@pytest.mark.parametrize(
    "ended", [{"boot": "another"}, {"until": 0.0}, None], ids=["boot", "time", "half-written"]
)
def test_a_run_that_was_killed_blocks_no_other_for_ever(
    path: Path, ended: dict[str, object] | None
) -> None:
    lock = plugin("module_utils.lock")
    lock.take(claim("one"), seconds=MINUTE, path=path)
    if ended is None:
        path.write_text('{"run": "on')
    else:
        change(path, **ended)
    assert lock.other_run("two", path=path) is None
    assert lock.take(claim("two"), seconds=MINUTE, path=path) is None
    assert lock.other_run("three", path=path)["run"] == "two"


def test_only_the_run_that_is_known_to_have_ended_is_replaced(path: Path) -> None:
    lock = plugin("module_utils.lock")
    lock.take(claim("three"), seconds=MINUTE, path=path)
    other = lock.take(claim("two"), seconds=MINUTE, instead_of="one", path=path)
    assert other["run"] == "three", "it was faster"
    assert lock.take(claim("two"), seconds=MINUTE, instead_of="three", path=path) is None


def test_of_many_at_once_one_gets_it(path: Path) -> None:
    """Each frees it, too, so that the file goes while others wait for it."""
    lock = plugin("module_utils.lock")
    inside, most, rounds = [], [], []

    def work(name: str) -> None:
        done = 0
        while done < 23:
            if lock.take(claim(name), seconds=MINUTE, path=path) is None:
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)
                assert lock.free(name, path=path)
                done += 1
        rounds.append(done)

    threads = [threading.Thread(target=work, args=(f"run{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (set(most), rounds) == ({1}, [23] * 4)


def test_a_link_in_its_place_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("target"))
    with pytest.raises(OSError, match="symbolic"):
        plugin("module_utils.lock").take(claim("one"), seconds=MINUTE, path=path)
    assert not path.with_name("target").exists()


def test_of_this_machine_it_is_known_that_a_process_has_ended() -> None:
    run = plugin("plugin_utils.run")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        found = {
            "controller": run.controller(),
            "pid": other.pid,
            "started": run.start_time(other.pid),
        }
        assert not run.has_ended(found)
        assert run.has_ended({**found, "started": 1}), "another process has its number now"
        other.kill()
    assert run.has_ended(found)
    assert not run.has_ended({**found, "controller": "another"}), "that cannot be known"
    assert not run.has_ended({**found, "controller": None})


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run Ansible as any uid, without an entry of it."""
    run = plugin("plugin_utils.run")

    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 1000650000")

    monkeypatch.setattr(run.getpass, "getuser", getuser)
    assert f"uid {os.getuid()} on " in run.this_run()["holder"]
