"""The resource attributes of the host, which every span and metric has."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from throughline import __version__

# host.arch values of the semantic conventions, by uname machine.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm32",
    "ppc64le": "ppc64",
    "i686": "x86",
}


def host_attributes(root: Path = Path("/")) -> dict[str, str]:
    """The host.*, os.* and telemetry.* attributes. Those that the host does not give are left out.

    Spans come from kernel records, not from an SDK in the service. So `telemetry.sdk.name` is this
    agent, and there is no `telemetry.sdk.language`.
    """
    uname = os.uname()
    attributes = {
        "host.name": socket.gethostname(),
        "host.id": _machine_id(root),
        "host.arch": _ARCHITECTURES.get(uname.machine, uname.machine),
        "os.type": "linux",
        "telemetry.sdk.name": "throughline",
        "telemetry.sdk.version": __version__,
        "telemetry.distro.name": "throughline",
        "telemetry.distro.version": __version__,
    }
    release = _os_release(root)
    for name, key in (
        ("os.name", "NAME"),
        ("os.version", "VERSION_ID"),
        ("os.description", "PRETTY_NAME"),
    ):
        attributes[name] = release.get(key, "")
    return {name: value for name, value in attributes.items() if value}


def _machine_id(root: Path) -> str:
    """The machine id of systemd, see machine-id(5); "" when the host has none yet."""
    try:
        text = (root / "etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) == 32 else ""


def _os_release(root: Path) -> Mapping[str, str]:
    """The fields of os-release(5), from /etc or else /usr/lib."""
    for place in ("etc/os-release", "usr/lib/os-release"):
        try:
            text = (root / place).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
        return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs if key}
    return {}
