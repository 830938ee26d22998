"""Where Debian packages come from: the mirror that this machine's own apt is set up with.

No address is written down here, so that the boxes are built from whatever the machine may reach.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SECURITY = "-security"


def _mirrors() -> dict[str, str]:
    """The address of the repository of each label (`Debian`, `Debian-Security`)."""
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, str] = {}
    for line in answer.stdout.splitlines():
        origin, label, address = line.split("|")
        if origin == "Debian":
            found.setdefault(label, address)
    return found


def sources(suites: tuple[str, ...]) -> list[str]:
    """One line of sources.list for each suite (`bookworm`, `bookworm-security`, …).

    Raises LookupError where apt knows no Debian mirror for one of them.
    """
    mirrors = _mirrors()
    lines = []
    for suite in suites:
        label = "Debian-Security" if suite.endswith(SECURITY) else "Debian"
        if label not in mirrors:
            raise LookupError(
                f"apt has no repository labelled {label}: add it to /etc/apt and run apt-get update"
            )
        lines.append(f"deb [signed-by={KEYRING}] {mirrors[label]} {suite} main")
    return lines
