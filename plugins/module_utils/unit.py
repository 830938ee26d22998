# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The unit of the agent: read its state, start, restart or reload it, wait until it is healthy.

`run` is AnsibleModule.run_command.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import signal
import time
from pathlib import Path

from .health import ailment, delay, lacking
from .host import UNIT

USER = "throughline"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
DROP_IN = UNIT_FILE.with_name(f"{UNIT}.d") / "capabilities.conf"
# The process that opens uprobes, and where the agent asks it.
PROBE_SERVICE = UNIT_FILE.with_name("throughline-probes.service")
PROBE_SOCKET = UNIT_FILE.with_name("throughline-probes.socket")
PROBE_UNITS = (PROBE_SERVICE, PROBE_SOCKET)
POLL_SECONDS = 0.25
# The agent has to stay healthy for this long. One that ends right after its start does not count.
SETTLE_SECONDS = 2.0
MOST_ENDS = 3  # after so many ends of a new agent, its timeout is not waited for
COMMAND_SECONDS = "20"  # a broken release may never answer
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
    """systemctl failed. The message is its output."""


def systemctl(run, *arguments):
    """Runs systemctl and returns its output. Raises UnitError."""
    code, out, err = run(["systemctl", *arguments])
    if code:
        raise UnitError(f"systemctl {' '.join(arguments)}: {(err or out).strip()}")
    return out


def read_properties(run):
    """{property: value} of the unit."""
    out = systemctl(run, "show", UNIT, "--property=" + ",".join(PROPERTIES))
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def ask(run, directory, *arguments, become=()):
    """Runs the command line of a release. Returns (exit code, output, errors).

    `become` are the words in front of it that make it run as another user.
    """
    launcher = str(Path(directory) / "bin/throughline")
    return run(["timeout", "--kill-after=1", COMMAND_SECONDS, *become, launcher, *arguments])


def check_config(run, directory, config):
    """Lets a release check a configuration. Returns (exit code, output, errors).

    It runs as the agent's user, without any capability, since root can read every file that the
    configuration names. Where there is no such user yet, or no setpriv, it runs as root.
    """
    return ask(run, directory, "config", "check", str(config), become=become_agent(run))


def become_agent(run):
    """The words in front of a command that make it run as the agent's user, with its groups."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        return []
    if shutil.which("setpriv") is None:
        return []
    groups = {*os.getgrouplist(USER, found.pw_gid), *supplementary_groups(run)}
    return [
        *("setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}"),
        f"--groups={','.join(map(str, sorted(groups)))}",
        *("--inh-caps=-all", "--no-new-privs"),
    ]


def supplementary_groups(run):
    """The ids of the groups that an operator's drop-in gives to the unit. systemd shows names."""
    code, out, _err = run(["systemctl", "show", UNIT, "--property=SupplementaryGroups"])
    names = out.partition("=")[2].split() if code == 0 else []
    found = []
    for name in names:
        with contextlib.suppress(KeyError):
            found.append(int(name) if name.isdigit() else grp.getgrnam(name).gr_gid)
    return found


def read_status(run, directory):
    """The running agent's status --json, or None while it does not answer."""
    _code, out, _err = ask(run, directory, "status", "--json")
    try:
        return json.loads(out)
    except ValueError:
        return None


def running_release(pid):
    """The release of which a process runs, or None."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    paths = (re.search(rb"/releases/([^/]+)/lib/start\.py$", word) for word in words)
    return next((match.group(1).decode(errors="replace") for match in paths if match), None)


def tell(run, action):
    """Starts, restarts or reloads the unit. Does not wait: a release may never report ready."""
    if action != "reload":
        run(["systemctl", "reset-failed", UNIT])  # it fails where the unit is not loaded
    systemctl(run, "--no-block", action, UNIT)


def renew_probe_process(run):
    """Ends the process that opens uprobes, of whatever release. The next request starts it.

    Its socket listens where its unit is installed, and nowhere else.
    """
    # The socket first, so that nothing starts the process again. Units may not be loaded.
    run(["systemctl", "stop", PROBE_SOCKET.name, PROBE_SERVICE.name])
    if PROBE_SOCKET.exists():
        systemctl(run, "start", PROBE_SOCKET.name)


def replace(run):
    """Kills the agent and starts the unit again. Unlike a stop, that leaves pins to adopt."""
    pid = int(read_properties(run)["MainPID"])
    if pid:
        with contextlib.suppress(ProcessLookupError):  # the process has ended meanwhile
            os.kill(pid, signal.SIGKILL)
    tell(run, "restart")


def wait_until_healthy(run, *, directory, groups, since, timeout, settle=SETTLE_SECONDS):
    """Waits for the agent of a release. Returns (its status, problem or None).

    `since` is when the agent was told to start, in seconds since the epoch. Earlier answers do not
    count. It does not wait for the timeout where the agent has failed for good, has ended MOST_ENDS
    times, or has said that a group is off.
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
            # The unit is also "failed" between the kill of the old agent and the queued start.
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
