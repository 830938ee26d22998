"""Prints the state of a host that the tests look at, as one JSON object: one login, not fifty.

look.py [--healthy SECONDS]     waits up to SECONDS for a healthy agent first
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

AGENT = "/opt/throughline/current/bin/throughline"
STATUS = "/run/throughline/status.json"
UNIT = "throughline.service"
OURS = ("/opt/throughline", "/etc/throughline", "/var/lib/throughline")
FOLDERS = {
    "/run": ("throughline*",),
    "/etc/systemd/system": ("throughline*", "run-throughline*", "*.wants/*throughline*"),
    "/sys/fs/cgroup": ("throughline*", "*/throughline*"),
}
PROPERTIES = ("ActiveState", "MainPID", "NRestarts", "InvocationID", "UnitFileState")


def text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def pairs(lines: str, separator: str) -> dict[str, str]:
    split = (line.partition(separator) for line in lines.splitlines())
    return {key.strip(): value.strip().strip('"') for key, _, value in split}


def read_json(found: str | None) -> object:
    try:
        return json.loads(found or "null")
    except ValueError:
        return None


def mounts() -> list[list[str]]:
    """[mount point, file system type]"""
    found = []
    for line in (text("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        found.append([left.split()[4], right.split()[0]])
    return found


def bpf() -> dict[str, list[list[str]]] | None:
    """Programs, maps and links, each as [type, name]; None where bpftool is not installed."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/sbin:/usr/bin")
    if bpftool is None:
        return None
    programs = json.loads(output(bpftool, "--json", "prog", "show") or "[]")
    names = {program["id"]: program.get("name", "") for program in programs}
    listed = {"prog": [[program["type"], program.get("name", "")] for program in programs]}
    maps = json.loads(output(bpftool, "--json", "map", "show") or "[]")
    listed["map"] = [[one["type"], one.get("name", "")] for one in maps]
    links = json.loads(output(bpftool, "--json", "link", "show") or "[]")
    listed["link"] = [[str(one["type"]), names.get(one.get("prog_id"), "")] for one in links]
    return {kind: sorted(found) for kind, found in listed.items()}


def files() -> list[str]:
    """The files of throughline and of its units."""
    found = [path for path in map(Path, OURS) if path.exists()]
    for folder, patterns in FOLDERS.items():
        for pattern in patterns:
            found += Path(folder).glob(pattern)
    return sorted({str(path) for path in found})


def users() -> list[str]:
    return sorted(user.pw_name for user in pwd.getpwall())


def wait_healthy(seconds: float) -> None:
    """Waits until the agent has written a healthy status since its start, or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = read_json(text(STATUS))
        pid = output("systemctl", "show", "--property=MainPID", "--value", UNIT)
        if isinstance(status, dict) and status["healthy"] and str(status["pid"]) == pid:
            return
        time.sleep(0.5)


def agent() -> dict[str, object]:
    """The service, from systemd, /proc and the agent's status."""
    shown = pairs(output("systemctl", "show", UNIT, "--property=" + ",".join(PROPERTIES)), "=")
    process = pairs(text(f"/proc/{shown.get('MainPID', '0')}/status") or "", ":")
    journal = output(
        "journalctl", "--boot", "--no-pager", "--output=cat", "_PID=1", "--unit", UNIT
    ).splitlines()
    return {
        "unit": shown,
        "process": process,
        "starts": sum(line.startswith("Started ") for line in journal),
        "reloads": sum(line.startswith("Reloaded ") for line in journal),
        "status": read_json(text(STATUS)),
        "doctor": read_json(output(AGENT, "doctor", "--json")) if Path(AGENT).exists() else None,
        "release": str(Path("/opt/throughline/current").resolve()),
    }


def exposure() -> float | None:
    """The overall level of systemd-analyze security, 0 (best) to 10."""
    found = re.search(
        r"Overall exposure level.*?: ([0-9.]+)",
        output("systemd-analyze", "security", "--no-pager", UNIT),
    )
    return float(found[1]) if found else None


if "--healthy" in sys.argv:
    wait_healthy(float(sys.argv[sys.argv.index("--healthy") + 1]))
lockdown = re.search(r"\[(\w+)\]", text("/sys/kernel/security/lockdown") or "")
found = mounts()
kinds = {kind for _, kind in found}
layout = {True: "hybrid", False: "unified"}["cgroup" in kinds]
print(
    json.dumps(
        {
            "boot_id": text("/proc/sys/kernel/random/boot_id"),
            "kernel": os.uname().release,
            "command_line": text("/proc/cmdline"),
            "userland": pairs(text("/etc/os-release") or "", "=").get("PRETTY_NAME"),
            "systemd": int((re.findall(r"\d+", output("systemctl", "--version")) or [0])[0]),
            "running": output("systemctl", "is-system-running", "--wait"),
            "failed": output("systemctl", "--failed", "--plain", "--no-legend"),
            "lockdown": lockdown[1] if lockdown else None,
            "cgroup": layout if "cgroup2" in kinds else "legacy",
            "btf": Path("/sys/kernel/btf/vmlinux").exists(),
            "mounts": found,
            "bpf": bpf(),
            "files": files(),
            "users": users(),
            "agent": agent(),
            "exposure": exposure() if Path(AGENT).exists() else None,
        }
    )
)
