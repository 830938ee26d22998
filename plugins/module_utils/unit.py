# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent as systemd runs it: look at it, tell it what to do, wait until it traces.

`run` is AnsibleModule.run_command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

from .health import ailment, delay, lacking
from .host import UNIT

UNIT_FILE = Path("/etc/systemd/system") / UNIT
DROP_IN = UNIT_FILE.with_name(f"{UNIT}.d") / "capabilities.conf"
POLL_SECONDS = 0.25
# An agent that ends right after it was healthy is not: it has to stay so for this long.
SETTLE_SECONDS = 2.0
MOST_ENDS = 3  # of a new agent, by itself, before the timeout is not waited for
COMMAND_SECONDS = "20"  # a release that does not work may not answer at all
PROPERTIES = (
    "ActiveState",
    "ExecMainStatus",
    "Job",
    "MainPID",
    "NeedDaemonReload",
    "NRestarts",
    "Result",
    "UnitFileState",
)


class UnitError(Exception):
    """systemctl refused; the message is what it said."""


def systemctl(run, *arguments):
    """Run systemctl and return its output."""
    code, out, err = run(["systemctl", *arguments])
    if code:
        raise UnitError(f"systemctl {' '.join(arguments)}: {(err or out).strip()}")
    return out


def read_properties(run):
    """systemd's view of the unit."""
    out = systemctl(run, "show", UNIT, "--property=" + ",".join(PROPERTIES))
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def ask(run, directory, *arguments):
    """(exit code, output, errors) of a release's own command line."""
    launcher = str(Path(directory) / "bin/throughline")
    return run(["timeout", "--kill-after=1", COMMAND_SECONDS, launcher, *arguments])


def read_status(run, directory):
    """The running agent's status --json, or None while it does not answer."""
    _code, out, _err = ask(run, directory, "status", "--json")
    try:
        return json.loads(out)
    except ValueError:
        return None


def running_release(pid):
    """The release that a process was started from, or None."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    paths = (re.search(rb"/releases/([^/]+)/lib/start\.py$", word) for word in words)
    return next((match.group(1).decode(errors="replace") for match in paths if match), None)


def tell(run, action):
    """start, restart or reload: does not wait, since a release may never say that it is ready."""
    if action != "reload":
        run(["systemctl", "reset-failed", UNIT])  # says so when the unit is not loaded
    systemctl(run, "--no-block", action, UNIT)


def replace(run):
    """Restart without a stop: whatever runs is killed, so its pins stay and are adopted."""
    pid = int(read_properties(run)["MainPID"])
    if pid:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)
    tell(run, "restart")


def wait_until_healthy(run, *, directory, groups, since, timeout, settle=SETTLE_SECONDS):
    """Wait for the agent of a release: (its status, what is wrong with it or None).

    `since` is when it was told to start, in seconds since the epoch: earlier answers do not count.
    Does not wait for the timeout where the agent has ended for good or again and again, or has said
    that a group is off.
    """
    begin = time.monotonic()
    steady, fewest = None, None
    while True:
        properties = read_properties(run)
        pid = int(properties["MainPID"])
        restarts = int(properties["NRestarts"])
        fewest = restarts if fewest is None else min(fewest, restarts)
        status = read_status(run, directory)
        problem = ailment(status, groups=groups, pid=pid, since=since)
        is_ours = running_release(pid) == Path(directory).name
        if problem is None and not is_ours:
            problem = f"process {pid} is of release {running_release(pid)}"
        now = time.monotonic()
        if problem is None:
            if steady is None or steady[0] != pid:
                steady = pid, now
            if now - steady[1] >= settle:
                return status, None
        else:
            steady = None
            # between the end of what was killed and the start that is queued it is "failed", too
            queued = properties.get("Job", "0") not in ("", "0")
            if properties["ActiveState"] == "failed" and not queued:
                code = properties["ExecMainStatus"]
                return status, f"has failed ({properties['Result']}, exit code {code})"
            if restarts - fewest >= MOST_ENDS:
                return status, f"has ended {restarts - fewest} times in {now - begin:.0f} s"
            if (
                is_ours
                and not delay(status, pid=pid, since=since)
                and lacking(status, groups=groups)
            ):
                return status, f"is not healthy: {problem}"
            if now - begin > timeout:
                return status, f"is not healthy after {timeout} s: {problem}"
        time.sleep(POLL_SECONDS)
