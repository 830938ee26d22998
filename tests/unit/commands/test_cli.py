"""The command line as an operator calls it: a process, its output and its exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import throughline as package
from throughline.agent.status import StatusWriter
from throughline.commands import cli

SOURCES = {"PYTHONPATH": str(Path(package.__file__).parents[1])}


def throughline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "throughline", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], **SOURCES, **environment},
    )


def test_version() -> None:
    done = throughline("--version")
    assert (done.returncode, done.stdout) == (0, "throughline 0.1.0\n")


@pytest.mark.parametrize("arguments", [[], ["walk"], ["config"], ["config", "check"], ["run", "x"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    done = throughline(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: throughline")


def test_config_check(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("sampling: {arg: 0.5}\n")
    done = throughline("config", "check", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: valid\n")
    path.write_text("\nsampling: {args: 0.5}\n")
    done = throughline("config", "check", str(path))
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"throughline: {path}:2: sampling.args: unknown key; expected one of arg, sampler\nhint: "
    )
    done = throughline("config", "check", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "none: no such file" in done.stderr


@pytest.mark.parametrize("command", ["run", "doctor", "detach"])
def test_bad_configuration_is_2_everywhere(tmp_path: Path, command: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("services: 3")
    done = throughline(command, "--config", str(path))
    assert done.returncode == 2
    assert f"{path}:1: services" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_show(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("services: [{match: {cgroup: a}}]\nsampling: {arg: 0.5}\n")
    variables = {"THROUGHLINE_CONFIG": str(path), "OTEL_TRACES_SAMPLER": "traceidratio"}
    done = throughline("config", "show", **variables)
    assert done.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["sampling.arg"] == ["0.5", "file"]
    assert lines["sampling.sampler"] == ["traceidratio", "environment", "OTEL_TRACES_SAMPLER"]
    found = json.loads(throughline("config", "show", "--json", **variables).stdout)
    assert found["sampling.arg"] == {"value": 0.5, "source": "file"}
    assert found["services"]["value"] == [{"match": {"cgroup": "a"}, "name": None, "trace": True}]
    assert found["export.spool.max_bytes"] == {"value": 67108864, "source": "default"}


def test_status(tmp_path: Path) -> None:
    where = {"THROUGHLINE_RUNTIME_DIRECTORY": str(tmp_path)}
    done = throughline("status", **where)
    assert done.returncode == 3
    assert "is not running" in done.stdout
    assert throughline("status", "--json", **where).stdout == "null\n"
    writer = StatusWriter(tmp_path / "status.json")
    now = time.time() + 60
    running = {"version": "0.1.0", "pid": os.getpid(), "updated_unix": now, "healthy": True}
    writer.write(running)
    done = throughline("status", **where)
    assert (done.returncode, done.stdout.splitlines()[0][:27]) == (0, "throughline 0.1.0: healthy,")
    writer.write({**running, "healthy": False})
    done = throughline("status", "--json", **where)
    assert (done.returncode, json.loads(done.stdout)["healthy"]) == (1, False)


def test_status_works_while_the_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1")
    running = {"pid": os.getpid(), "updated_unix": time.time() + 60, "healthy": True}
    StatusWriter(tmp_path / "status.json").write(running)
    where = {"THROUGHLINE_RUNTIME_DIRECTORY": str(tmp_path)}
    done = throughline("status", "--config", str(tmp_path / "c.yaml"), **where)
    assert done.returncode == 0
    assert "unknown key" in done.stderr


def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    command = f"{sys.executable} -m throughline config show | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (PermissionError(errno.EPERM, "Operation not permitted", "bpf"), 3, "missing capability"),
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), 1, "throughline doctor"),
    ],
)
def test_the_systems_errors_become_codes_and_hints(
    error: OSError,
    code: int,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The kernel's refusal is raised where the agent would meet it."""

    def detach(bpffs: Path) -> None:
        raise error

    monkeypatch.setattr("throughline.commands.detach.detach", detach)
    monkeypatch.delenv("THROUGHLINE_CONFIG", raising=False)
    assert cli.main(["detach"]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"throughline: {error.strerror}: {error.filename}\nhint: ")
    assert hint in said


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/sys/fs/cgroup/user.slice/\x1b[2J"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        RuntimeError("a fault \x1b[2J\nERROR forged"),
    ],
)
def test_what_fails_while_the_agent_runs_does_not_keep_it_down(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 3 does (RestartPreventExitStatus): others can bring about errors at any moment."""

    def run(config: Any) -> int:
        raise error

    agent = ModuleType("throughline.agent.agent")
    agent.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "throughline.agent.agent", agent)
    monkeypatch.setattr("throughline.agent.agent", agent, raising=False)
    monkeypatch.delenv("THROUGHLINE_CONFIG", raising=False)
    assert cli.main(["run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ERROR the agent failed: ") and "\x1b" not in said
    assert all(line.startswith("  ") for line in said.splitlines()[1:])


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]])
def test_a_terminal_that_is_not_one_for_utf8(tmp_path: Path, arguments: list[str]) -> None:
    odd = os.fsdecode(b"caf\xc3\xa9 \xff\x1b[2J")
    running = {
        "pid": os.getpid(),
        "updated_unix": time.time() + 60,
        "healthy": True,
        "services": {odd: {"unit": odd, "server": {"requests": 3}}},
    }
    StatusWriter(tmp_path / "status.json").write(running)
    where = {"THROUGHLINE_RUNTIME_DIRECTORY": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = throughline(*arguments, **where)
    assert done.returncode == 0, done.stderr
    assert "caf" in done.stdout and "\x1b" not in done.stdout
    if "--json" in arguments:
        (name,) = json.loads(done.stdout)["services"]
        assert name == "café \ufffd\x1b[2J"


def test_only_what_a_command_needs_is_loaded() -> None:
    """`status` and `config` answer in a moment: no OpenTelemetry, no BPF."""
    code = (
        "import sys\n"
        "from throughline.commands import cli\n"
        "cli.main(['config', 'show'])\n"
        "heavy = {'opentelemetry', 'requests', 'ctypes', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
