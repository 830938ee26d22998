# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Whether the host's package manager has installed the agent: then Ansible leaves it alone."""

from __future__ import annotations

from pathlib import Path

BASE = "/opt/throughline"
MARK = "PACKAGE"  # only the .deb and the .rpm have this file


def refusal(base=BASE):
    """Why this host is not for a playbook, or None."""
    if not (Path(base) / MARK).exists():
        return None
    return (
        "Found the package throughline on this host, required an agent that Ansible has installed,"
        " or none. Nothing was changed. Remedy: leave the host out (--limit), or remove the package"
        " (apt-get purge throughline, or rpm -e throughline) and run again."
    )
