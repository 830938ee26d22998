"""The files of a package: a release as the role unpacks it, unit, configuration, scripts."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from packages import render

BASE = "opt/throughline"
UNITS = "usr/lib/systemd/system"
CONFIG = "etc/throughline/config.yaml"
UNIT = "systemd/throughline.service"
PROBE_UNITS = ("throughline-probes.service", "throughline-probes.socket")
MARK = f"{BASE}/PACKAGE"
SCRIPTS = Path(__file__).with_name("scripts")
SCRIPT_NAMES = ("before_install", "after_install", "before_remove", "after_remove")


@dataclass(frozen=True, slots=True)
class Tree:
    """What a package puts on a host, whatever its format. Paths begin without a slash."""

    version: str
    architecture: str  # the kernel's name: x86_64
    files: dict[str, bytes]
    executable: frozenset[str]
    links: dict[str, str]
    scripts: dict[str, str]

    def folders(self) -> list[str]:
        """The folders of throughline alone, the outer ones first."""
        paths = [*self.files, *self.links]
        found = {path[:at] for path in paths for at, char in enumerate(path) if char == "/"}
        own = (BASE, "etc/throughline", f"{UNITS}/throughline.service.d")
        return sorted(path for path in found if path.startswith(own))


def make(root: Path, bundle: Path) -> Tree:
    """The package of a bundle. The release has the same name as on hosts of the role."""
    name = hashlib.sha256(bundle.read_bytes()).hexdigest()
    release: dict[str, bytes] = {}
    executable = set()
    with tarfile.open(bundle, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            release[member.name] = content.read()
            if member.mode & 0o100:
                executable.add(f"{BASE}/releases/{name}/{member.name}")
    manifest = json.loads(release["MANIFEST.json"])
    mount_name, mount = render.mount(root)
    files = {f"{BASE}/releases/{name}/{path}": content for path, content in release.items()}
    files |= {
        MARK: f"throughline {manifest['version']} is a package of this host.\n".encode(),
        CONFIG: render.config(root),
        f"{UNITS}/throughline.service": release[UNIT],
        **{f"{UNITS}/{name}": release[f"systemd/{name}"] for name in PROBE_UNITS},
        f"{UNITS}/throughline.service.d/capabilities.conf": render.capabilities(root),
        f"{UNITS}/{mount_name}": mount,
    }
    return Tree(
        version=manifest["version"],
        architecture=manifest["arch"],
        files=files,
        executable=frozenset(executable),
        links={f"{BASE}/current": f"releases/{name}"},
        scripts={script: _script(root, script, name) for script in SCRIPT_NAMES},
    )


def _script(root: Path, name: str, release: str) -> str:
    text = (SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    head, _, body = text.partition("# ---\n")  # before it: what a checker wants to know
    assert head.startswith("#!"), name
    return body.replace("@RELEASE@", release).replace("@ACCOUNTS@\n", render.accounts(root))


def write(tree: Tree, target: Path) -> None:
    """Writes the tree below a directory."""
    for path, content in tree.files.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o755 if path in tree.executable else 0o640 if path == CONFIG else 0o644)
    for path, to in tree.links.items():
        (target / path).symlink_to(to)
    for folder in [path for path in target.rglob("*") if path.is_dir() and not path.is_symlink()]:
        folder.chmod(0o755)
    (target / CONFIG).parent.chmod(0o750)
