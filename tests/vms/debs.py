"""A repository of packages inside a box, so that its apt installs them without any network."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

FOLDER = Path("/var/lib/throughline-debs")
FIELDS = "Package,Version,Architecture,Multi-Arch,Provides,Pre-Depends,Depends,Breaks,Conflicts"


def _stanza(package: Path) -> str:
    """A package's entry of the index: its own fields, where it is, and its checksum."""
    shown = ["dpkg-deb", "--field", str(package), *FIELDS.split(",")]
    fields = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    content = package.read_bytes()
    return (
        f"{fields}Filename: ./{package.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )


def offer(root: Path, packages: list[str]) -> None:
    """Downloads packages, and what they depend on and the root lacks; apt then knows only these."""
    folder = root / FOLDER.relative_to("/")
    (folder / "partial").mkdir(parents=True)
    apt = ["chroot", str(root), "apt-get", "--quiet", "--yes", "--no-install-recommends"]
    if packages:
        subprocess.run(
            [
                *apt,
                "-o",
                f"Dir::Cache::archives={FOLDER}/",
                "install",
                "--download-only",
                *packages,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    stanzas = [_stanza(package) for package in sorted(folder.glob("*.deb"))]
    (folder / "Packages").write_text("\n".join(stanzas))
    for file in (root / "etc/apt").glob("sources.list.d/*"):
        file.unlink()
    source = f"deb [trusted=yes] file:{FOLDER} ./\n"
    (root / "etc/apt/sources.list").write_text(source)
    for file in (root / "var/lib/apt/lists").glob("*_*"):
        file.unlink()
    subprocess.run([*apt, "update"], check=True, stdout=subprocess.DEVNULL)
