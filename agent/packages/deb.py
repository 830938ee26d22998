"""A .deb of the agent, by dpkg-deb."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from bundle.archive import MTIME
from packages import tree
from packages.tree import Tree

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CONTROL = """\
Package: throughline
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Depends: passwd, systemd (>= 247), util-linux
Section: net
Priority: optional
Description: {summary}
 BPF programs write a W3C traceparent into the HTTP requests of services, and
 every hop becomes an OpenTelemetry span. The services are not changed. The
 package starts nothing: systemctl enable --now throughline
"""
# The arguments with which dpkg calls a script (deb-postinst(5) …), and ours for them.
SCRIPTS = {
    "preinst": "set -e\n{before_install}",
    "postinst": 'set -e\nif [ "$1" = configure ]; then\n{after_install}fi\n',
    "prerm": 'set -e\nif [ "$1" = remove ]; then\n{before_remove}fi\n',
    # `remove` keeps the configuration, `purge` does not.
    "postrm": 'set -e\nif [ "$1" = remove ] || [ "$1" = purge ]; then\n{after_remove}fi\n'
    'if [ "$1" = purge ]; then rm -rf /etc/throughline; fi\n',
}


def build(packed: Tree, output: Path, *, summary: str, maintainer: str, level: int) -> Path:
    """Writes the .deb into the directory `output`. The same tree gives the same bytes."""
    architecture = ARCHITECTURES[packed.architecture]
    made = output / f"throughline_{packed.version}_{architecture}.deb"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        tree.write(packed, root)
        debian = root / "DEBIAN"
        debian.mkdir()
        size = sum(len(content) for content in packed.files.values())
        control = CONTROL.format(
            version=packed.version,
            architecture=architecture,
            maintainer=maintainer,
            kilobytes=size // 1024,
            summary=summary,
        )
        (debian / "control").write_text(control, encoding="utf-8")
        (debian / "conffiles").write_text(f"/{tree.CONFIG}\n", encoding="utf-8")
        for path in debian.iterdir():
            path.chmod(0o644)  # whatever the umask is
        for name, text in SCRIPTS.items():
            script = debian / name
            script.write_text(f"#!/bin/sh\n{text.format(**packed.scripts)}", encoding="utf-8")
            script.chmod(0o755)
        for path in (root, debian):
            path.chmod(0o755)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--build", str(root), made],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(MTIME)},
        )
    return made
