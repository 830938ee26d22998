# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Whether the host's package manager has installed the agent: then Ansible leaves it alone."""

from __future__ import annotations

from pathlib import Path

BASE = "/opt/throughline"
MARK = "PACKAGE"  # only the .deb and the .rpm have this file
REST = "/var/lib/dpkg/info/throughline.postrm"  # also after apt-get remove, until purge


def refusal(base=BASE, rest=REST):
    """Why this host is not for a playbook, or None."""
    if (Path(base) / MARK).exists():
        return (
            "Found the package throughline on this host, required an agent that Ansible has"
            " installed, or none. Nothing was changed. Remedy: leave the host out (--limit), or"
            " remove the package (apt-get purge throughline, or rpm -e throughline) and run again."
        )
    if Path(rest).exists():
        return (
            "Found what apt-get remove has left of the package throughline on this host, required"
            " nothing: its purge takes /etc/throughline/config.yaml away, also a later one. Nothing"
            " was changed. Remedy: apt-get purge throughline, and run again."
        )
    return None
