# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The answer of `throughline doctor --json`, merged into the verdict on a host.

`run` is AnsibleModule.run_command.
"""

from __future__ import annotations

import os
import pwd

from .host import CAPABILITY_BITS, UNIT
from .trial import ask_as_service, try_release
from .verdict import mode_of

LAUNCHER = "/opt/throughline/current/bin/throughline"
CONFIG = "/etc/throughline/config.yaml"


def ask_doctor(run, timeout):
    """(answer of the installed agent or None, why there is none); (None, None) without an agent.

    The doctor runs as the agent does, so that a stopped agent is not tried with more capabilities
    than it has.
    """
    if not os.access(LAUNCHER, os.X_OK):
        return None, None
    account, capabilities = service_account(run)
    answer, problem = ask_as_service(
        LAUNCHER,
        CONFIG,
        capabilities=capabilities,
        timeout=timeout,
        uid=account.pw_uid if account else os.geteuid(),
        gid=account.pw_gid if account else os.getegid(),
    )
    if problem is None and not is_answer(answer):
        return None, "its answer has another shape"
    return answer, problem


def service_account(run):
    """(account, capabilities) of the agent's unit, or (None, None): then as the present user."""
    _code, out, _err = run(["systemctl", "show", UNIT, "--property=AmbientCapabilities"])
    names = out.strip().partition("=")[2].upper().split()
    try:
        account = pwd.getpwnam("throughline")
    except KeyError:
        account = None
    if account is None or os.geteuid() != 0 or not set(names) & set(CAPABILITY_BITS):
        return None, None
    return account, [name for name in names if name in CAPABILITY_BITS]


def is_answer(answer):
    """Returns whether this has the shape of `doctor --json`, in all releases."""
    return (
        isinstance(answer, dict)
        and {"version", "host", "groups", "mode"} <= answer.keys()
        and isinstance(answer["host"], dict)
        and isinstance(answer["groups"], dict)
        and all(
            isinstance(group, dict) and {"state", "wanted", "reason", "fix"} <= group.keys()
            for group in answer["groups"].values()
        )
    )


def merge(verdict, answer):
    """The installed agent's answer, with what only preflight knows: what the host could do."""
    host = {**verdict["host"], **answer["host"]}
    return {**answer, "host": host, "groups": merge_groups(verdict, answer)}


def merge_groups(verdict, answer):
    """Each group as the doctor found it, with the obstacles to groups that it did not try.

    It does not try a group that is switched off, or that its release does not have.
    """
    groups = {}
    for name, group in answer["groups"].items():
        ours = verdict["groups"].get(name, {})
        groups[name] = {**ours, **group}
        if ours and ours["reason"] and not group["wanted"] and not group["fix"]:
            both = f"{group['reason']}; {ours['reason']}" if group["reason"] else ours["reason"]
            groups[name].update(reason=both, fix=ours["fix"])
    return groups


def merge_trial(verdict, answer, *, wanted):
    """The result of a trial. The facts about the host stay: the trial saw mounts of its own."""
    groups = merge_groups(verdict, answer)
    for name, group in groups.items():
        if name in wanted:
            group["possible"] = group["state"] == "on"
    return {
        "source": "trial",
        "tried_version": answer["version"],
        "groups": groups,
        "mode": mode_of(groups),
    }


def try_bundle(verdict, bundle, *, sha256, wanted, timeout):
    """Tries the release in a bundle on the host. Returns what to change in the verdict."""
    answer, problem = try_release(
        bundle,
        sha256=sha256,
        capabilities=verdict["unit_capabilities"],
        wanted=wanted,
        timeout=timeout,
        probe_process=verdict["probe_process"],
    )
    if problem is None and not is_answer(answer):
        problem = "throughline doctor printed something else than its report"
    if problem is not None:
        return {"untried": f"the trial failed: {problem}"}
    return merge_trial(verdict, answer, wanted=wanted)
