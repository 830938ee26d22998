"""Runs the kernel matrix: `make test-kernels`, or `make test-kernels ONLY=6.1-none,6.12-none`.

Each platform is one `molecule test --scenario-name kernels`; its output goes to
build/kernels/log/PLATFORM.log, its times and outcome to build/kernels/results/PLATFORM.json. A
platform that has passed since anything that it depends on has changed is left out; `FORCE=1` runs
it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.fixtures.paths import CHECKOUT
from tests.fleet.interrupt import interruptible
from tests.vms import boxes, hypervisor, kvm, leftovers, nobtf, platforms, stock
from tests.vms.platforms import Platform

REPOSITORY = CHECKOUT
BUILD = REPOSITORY / "build/kernels"
PLATFORM_SECONDS = 45 * 60.0
LOG_LINES = 60
STILL_SECONDS = 60.0  # a sign of life in a step that takes long
OVERHEAD_MIB = 1024  # what QEMU needs besides the VM's own memory, most of it for translated code
DISK_MIB = 3072  # what a VM may write
BOX_MIB = 4096  # while a box is being built
# What decides what a run shows, besides the bundle, the box, and the platform's entries.
INPUTS = (
    *("molecule/kernels", "playbooks", "plugins", "roles"),
    *("tests/services/shop", "tests/services/go"),
)
# Molecule's lines for a step that begins, and for one that has failed.
STEP = re.compile(r"^INFO +kernels \S+ (\w+): Executing$", re.MULTILINE)
FAILED = re.compile(r"^ERROR +kernels \S+ (\w+): Executed: Failed$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def say(line: str) -> None:
    """Progress goes to standard output at once."""
    print(f"kernels: {line}", flush=True)


@dataclass(slots=True)
class Run:
    """A platform's Molecule. `seconds` holds the time of each step that has ended."""

    platform: Platform
    process: subprocess.Popen[bytes]
    log: Path
    inputs: str
    begun: float = field(default_factory=time.monotonic)
    step: str = ""
    since: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    read: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    boot: dict[str, Any] = field(default_factory=dict)


def inputs(platform: Platform, *, bundle: Path | None) -> str:
    """A digest of everything that decides a platform's result."""
    recipes = boxes.recipe_hash(boxes.RECIPES[platform.box]), nobtf.recipe_hash()
    digest = hashlib.sha256(f"{platform}{recipes}".encode())
    files = [file for folder in INPUTS for file in (REPOSITORY / folder).rglob("*")]
    for file in sorted(files):
        if file.is_file() and "__pycache__" not in file.parts:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(REPOSITORY)} {content}\n".encode())
    if bundle is not None:
        digest.update(bundle.read_bytes())
    return digest.hexdigest()[:16]


def result_file(name: str, *, build: Path = BUILD) -> Path:
    """Where a platform's result is."""
    return build / "results" / f"{name}.json"


def done(name: str, digest: str, *, build: Path = BUILD) -> bool:
    """Whether a platform has passed with these inputs."""
    file = result_file(name, build=build)
    if not file.exists():
        return False
    result = json.loads(file.read_text(encoding="utf-8"))
    return bool(result["outcome"] == "passed" and result["inputs"] == digest)


def choose(only: str, table: dict[str, Platform]) -> list[Platform]:
    """The platforms of a comma-separated list, all for "". Raises LookupError for one unknown."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in table]
    if unknown:
        raise LookupError(f"no platform {', '.join(unknown)}; there are {', '.join(table)}")
    return [platform for name, platform in table.items() if not names or name in names]


def shortage(
    platform: Platform, *, memory: int, disk: int, box_exists: bool, side_by_side: int = 1
) -> str:
    """Whether memory or disk is too short for a platform, in words; "" when it is not."""
    need = (platform.memory + OVERHEAD_MIB) * side_by_side
    need_disk = DISK_MIB * side_by_side + (0 if box_exists else BOX_MIB)
    lacks = []
    if memory < need:
        lacks.append(f"{need} MiB of memory needed, {memory} available")
    if disk < need_disk:
        lacks.append(f"{need_disk} MiB of disk needed in {hypervisor.directory()}, {disk} free")
    return "; ".join(lacks)


def _free() -> tuple[int, int]:
    """Memory and disk that are free, in MiB."""
    text = Path("/proc/meminfo").read_text()
    available = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    assert available is not None
    hypervisor.directory().mkdir(parents=True, exist_ok=True)
    return int(available[1]) >> 10, shutil.disk_usage(hypervisor.directory()).free >> 20


def _shortage(platform: Platform, *, side_by_side: int = 1) -> str:
    memory, disk = _free()
    there = boxes.path(platform.box).is_dir()
    return shortage(platform, memory=memory, disk=disk, box_exists=there, side_by_side=side_by_side)


def _side_by_side(chosen: Sequence[Platform], *, accelerated: bool) -> int:
    """How many VMs run at once: two where processors and memory suffice."""
    cores = len(os.sched_getaffinity(0))
    if len(chosen) < 2 or cores < (2 if accelerated else 4):
        return 1
    largest = max(chosen, key=lambda platform: platform.memory)
    return 1 if _shortage(largest, side_by_side=2) else 2


def _molecule(platform: Platform, *, digest: str) -> Run:
    """Starts a platform's Molecule in the background."""
    log = BUILD / "log" / f"{platform.name}.log"
    folder = BUILD / "molecule" / platform.name
    for directory in (log.parent, folder, BUILD / "results"):
        directory.mkdir(parents=True, exist_ok=True)
    for old in (result_file(platform.name), BUILD / "results" / f"{platform.name}.seen.json"):
        old.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "THROUGHLINE_PLATFORM": platform.name,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(folder),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "160",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["molecule", "test", "--scenario-name", "kernels"],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    leftovers.record(platform.name, process.pid)
    return Run(platform, process, log, digest)


def steps(text: str) -> list[str]:
    """The steps that Molecule says in its output to have begun."""
    return STEP.findall(COLOURS.sub("", text))


def failure(text: str) -> tuple[str, str]:
    """The first step that failed, and its output, from Molecule's; of the whole when none did."""
    plain = COLOURS.sub("", text)
    failed = FAILED.search(plain)
    if failed is None:
        return "", plain
    before = plain[: failed.start()]
    return failed[1], before[before.rfind(f"{failed[1]}: Executing") :]


def _end_step(run: Run) -> None:
    now = time.monotonic()
    if run.step:
        seconds = round(now - run.since, 1)
        run.seconds[run.step] = round(run.seconds.get(run.step, 0.0) + seconds, 1)
        say(f"{run.platform.name}: {run.step} took {seconds:.0f} s")
    run.since = run.said = now


def _watch(run: Run) -> None:
    """Reads on in the log, and says which step has begun and which goes on."""
    with run.log.open("rb") as file:
        file.seek(run.read)
        new = file.read()
    complete = new[: new.rfind(b"\n") + 1]
    run.read += len(complete)
    for step in steps(complete.decode(errors="replace")):
        if step != run.step:
            _end_step(run)
            run.step = step
            say(f"{run.platform.name}: {step} …")
    boot = run.platform.state / "boot.json"
    if not run.boot and boot.exists():
        run.boot = json.loads(boot.read_text())
        say(f"{run.platform.name}: booted in {run.boot['seconds']:.0f} s")
    if time.monotonic() > run.said + STILL_SECONDS:
        run.said = time.monotonic()
        say(f"{run.platform.name}: {run.step or 'start'} … {run.said - run.since:.0f} s")


def _finish(run: Run, *, error: str) -> bool:
    """Removes what is left of a run, writes its result, and says how it ended."""
    _end_step(run)
    leftovers.remove(run.platform.name)
    step, output = failure(run.log.read_text(errors="replace"))
    if error and step:
        error = f"{error} ({step} failed)"
    total = time.monotonic() - run.begun
    seconds = {**run.seconds, "total": round(total, 1)}
    if run.boot:
        seconds["boot"] = run.boot["seconds"]
    result = {
        "platform": run.platform.name,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "outcome": "failed" if error else "passed",
        "error": error,
        "seconds": seconds,
        "kvm": run.boot.get("kvm", False),
        "boots": run.boot.get("attempt", 0),
        "inputs": run.inputs,
    }
    result_file(run.platform.name).write_text(json.dumps(result, indent=1) + "\n")
    times = ", ".join(
        f"{step} {seconds[step]:.0f} s"
        for step in ("boot", "converge", "verify", "destroy")
        if step in seconds
    )
    if error:
        print("\n".join(output.splitlines()[-LOG_LINES:]), flush=True)
        say(f"{run.platform.name}: FAILED: {error}; the whole log: {run.log}")
    say(f"{run.platform.name}: {result['outcome']} in {total / 60:.1f} min ({times})")
    return not error


def _ended(run: Run) -> str | None:
    """None while the run goes on, then what is wrong, "" for nothing."""
    status = run.process.poll()
    if status is not None:
        return "" if status == 0 else f"molecule: exit code {status}"
    if time.monotonic() > run.begun + PLATFORM_SECONDS:
        return f"not done after {PLATFORM_SECONDS / 60:.0f} min (in {run.step})"
    return None


def _run_all(chosen: Sequence[tuple[Platform, str]], *, at_once: int) -> list[str]:
    """Runs platforms and returns the names of those that failed."""
    waiting, running, failed = list(chosen), list[Run](), list[str]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                platform, digest = waiting.pop(0)
                if lacks := _shortage(platform):
                    say(f"{platform.name}: not started: {lacks}")
                    failed.append(platform.name)
                    continue
                running.append(_molecule(platform, digest=digest))
            time.sleep(0.3)
            for run in list(running):
                _watch(run)
                if (error := _ended(run)) is not None:
                    running.remove(run)
                    if not _finish(run, error=error):
                        failed.append(run.platform.name)
    finally:
        for run in running:
            say(f"{run.platform.name}: interrupted in {run.step or 'its start'}; removing it")
            leftovers.remove(run.platform.name)
    return failed


def _bundle(arch: str) -> Path | None:
    """The bundle that the roles take: the newest in `$THROUGHLINE_DIST`, else in dist/."""
    folder = Path(os.environ.get("THROUGHLINE_DIST") or REPOSITORY / "dist")
    found = sorted(folder.glob(f"throughline-*-linux-{arch}.tar.gz"), key=os.path.getmtime)
    return found[-1] if found else None


def _matrix(only: str, *, force: bool) -> int:
    table = platforms.load()
    chosen = []
    for platform in choose(only, table):
        digest = inputs(platform, bundle=_bundle(platform.arch))
        if done(platform.name, digest) and not force:
            say(f"{platform.name}: passed already, and nothing has changed (FORCE=1 runs it again)")
        else:
            chosen.append((platform, digest))
    for name in leftovers.orphans():
        say(f"{name}: removing what a killed run left")
        leftovers.remove(name)
    for platform, _ in chosen:
        if lacks := _shortage(platform):
            raise RuntimeError(f"{platform.name} cannot run: {lacks}")
    if not chosen:
        return 0
    for platform, _ in chosen:
        stock.kernel(platform)
    accelerated, reason = kvm.usable(chosen[0][0].box)
    say("KVM boots kernels and is used" if accelerated else f"software emulation: {reason}")
    at_once = _side_by_side([platform for platform, _ in chosen], accelerated=accelerated)
    names = ", ".join(platform.name for platform, _ in chosen)
    say(f"{len(chosen)} of {len(table)} platforms, {at_once} at a time: {names}")
    failed = _run_all(chosen, at_once=at_once)
    passed = len(chosen) - len(failed)
    say(f"{passed} passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


def main() -> int:
    """Runs the platforms of `ONLY` and returns the exit code: 0 when all have passed."""
    with interruptible():
        try:
            return _matrix(os.environ.get("ONLY", ""), force=bool(os.environ.get("FORCE")))
        except (OSError, LookupError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"kernels: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
