# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Labels of files, where the host's kernel has SELinux on."""

from __future__ import annotations

from pathlib import Path

ON = Path("/sys/fs/selinux/enforce")
RESTORECON = ("/usr/sbin/restorecon", "/sbin/restorecon")


def set_labels(path, run, *, check=False, on=ON, programs=RESTORECON):
    """Gives a directory and all that is in it the labels that the host's policy has for it.

    A new file has the label of its directory: the policy names programs and libraries below /opt,
    but no rule gives them these labels when an archive is unpacked. With `check` nothing is
    changed. Returns (changed, problem): problem is None or a message. `run` is
    AnsibleModule.run_command.
    """
    if not on.exists():
        return False, None
    program = next((one for one in programs if Path(one).exists()), None)
    if program is None:
        return False, f"SELinux is on, and there is no restorecon: {path} keeps the labels it has"
    code, out, err = run([program, "-R", "-v", *(["-n"] if check else []), str(path)])
    problem = f"restorecon {path}: {(err or out).strip() or f'exit code {code}'}" if code else None
    return bool(out.strip()), problem
