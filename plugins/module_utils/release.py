# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Releases of the agent on a host: unpack, verify, name, link, remove.

BASE/releases/<sha256 of the bundle>/   MANIFEST.json, bin/, lib/, bpf/, systemd/
BASE/current, BASE/previous             links to directories in releases/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from .files import DIRECTORY_MODE, make_directory

MANIFEST = "MANIFEST.json"
ROOM = "A release needs 80 MB there. Remedy: make room, and run again"


def file_sha256(path):
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory):
    """The release's MANIFEST.json. Raises ValueError where it cannot be read or has no files."""
    try:
        manifest = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} has no 'files'")
    return manifest


def make_ready(directory, run, *, check=False):
    """Runs the release's own unpack.py, which verifies the files and compiles the modules.

    Returns (changed, problem): problem is None or its message. `run` is AnsibleModule.run_command.
    """
    directory = Path(directory)
    marks = sorted(directory.glob("UNPACKED*"))
    command = [str(directory / "bin/python"), str(directory / "unpack.py")]
    if not all(Path(path).is_file() for path in command):
        return False, "bin/python or unpack.py is missing"
    if is_noexec(directory):
        return False, (
            f"{directory.parent} is on a file system that is mounted noexec, required one from"
            " which programs may run. Remedy: mount it with exec, or mount a file system of its"
            " own at /opt/throughline"
        )
    code, out, err = run([*command, "--check"] if check else command)
    problem = (err or out).strip() or f"exit code {code}" if code else None
    return sorted(directory.glob("UNPACKED*")) != marks, problem


def is_noexec(directory):
    """Whether no program below a directory can be executed."""
    return bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)


def check_architecture(archive):
    """Raises ValueError for a bundle of another architecture than this host's."""
    try:
        member = archive.extractfile(MANIFEST)
    except KeyError:
        raise ValueError(f"no bundle of throughline: it has no {MANIFEST}") from None
    try:
        found = json.loads(member.read().decode()).get("arch")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    if found not in (None, os.uname().machine):
        raise ValueError(
            f"found a bundle for {found}, required one for {os.uname().machine}. Remedy: set"
            " throughline_bundle to a directory with the bundles of all architectures, or write"
            " {arch} in throughline_bundle_url"
        )


def open_directories(base, release, *, check):
    """Lets the agent's user reach a release, whatever umask root has or had. Makes BASE/releases.

    Returns whether anything changed, or would change with `check`.
    """
    releases = Path(base) / "releases"
    own = (Path(base), releases, releases / release)
    if check:
        return any(path.is_dir() and path.stat().st_mode & 0o7777 != DIRECTORY_MODE for path in own)
    changed = [make_directory(path) for path in own if path != own[-1] or path.is_dir()]
    return any(changed)


def checked_members(archive):
    """The archive's members. Raises ValueError for one that could be outside of the release."""
    members = archive.getmembers()
    for member in members:
        path = PurePosixPath(member.name)
        target = PurePosixPath(member.linkname) if member.issym() else path
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{member.name}: a path that leaves the release")
        if target.is_absolute() or ".." in target.parts:
            raise ValueError(f"{member.name}: a link that leaves the release")
        if not (member.isfile() or member.isdir() or member.issym()):
            raise ValueError(f"{member.name}: neither file, directory nor link")
    return members


def unpack(bundle, run, *, sha256, base, for_trial=False):
    """Unpacks a bundle below base/releases. Verifies the hash of the archive and of each file.

    The release gets its name when it is complete. Returns its manifest. Raises ValueError for a
    wrong hash, archive or manifest, OSError when the disk is full. A release `for_trial` is
    verified and not compiled, because it runs once.
    """
    found = file_sha256(bundle)
    if found != sha256:
        raise ValueError(
            f"found SHA-256 {found}, required {sha256}."
            " Remedy: run again; the copy is damaged, or the bundle has been rebuilt meanwhile"
        )
    releases = Path(base) / "releases"
    made = [path for path in (releases, releases.parent) if not path.exists()]
    open_directories(base, sha256, check=False)
    work = releases / f".{sha256}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)  # a killed run left it
    try:
        make_directory(work)
        with tarfile.open(bundle, "r:gz") as archive:
            members = checked_members(archive)
            check_architecture(archive)
            for member in members:
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                archive.extract(member, work, **extraction_filter())
        _changed, problem = make_ready(work, run, check=for_trial)
        if problem:
            full = os.strerror(errno.ENOSPC) in problem
            raise ValueError(f"{problem}. {ROOM}" if full else problem)
        final = releases / sha256
        if final.exists():  # the caller has found it damaged
            shutil.rmtree(final)
        work.rename(final)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"not a readable bundle: {error}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"{releases}: {error.strerror}. {ROOM}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for path in made:  # a host without a release stays as it was
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()
    return read_manifest(final)


def extraction_filter():
    """Silences the warning of Python 3.12. checked_members() is stricter than PEP 706's `tar`."""
    return {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}


def linked_release(base, name):
    """The release that the link `current` or `previous` names, or None."""
    link = Path(base) / name
    return Path(os.readlink(link)).name if link.is_symlink() else None


def point(base, name, release):
    """Points the link at a release, atomically; None removes it. Returns whether it changed."""
    if linked_release(base, name) == release:
        return False
    link = Path(base) / name
    if release is None:
        link.unlink()
        return True
    work = Path(base) / f".{name}.{os.getpid()}"
    if work.is_symlink():  # a killed run with the same process id left it
        work.unlink()
    work.symlink_to(Path("releases") / release)
    work.rename(link)
    return True


def name_release(base, release):
    """A release for people: its version, and the beginning of its name."""
    try:
        version = read_manifest(Path(base) / "releases" / release)["version"]
    except ValueError:  # the release is not unpacked, or removed
        return f"release {release[:12]}"
    return f"{version} (release {release[:12]})"


def prune(base):
    """Removes all releases but the current and the previous one. Returns their names."""
    keep = {linked_release(base, "current"), linked_release(base, "previous")}
    releases = Path(base) / "releases"
    old = sorted(path for path in releases.iterdir() if path.name not in keep)
    for path in old:
        shutil.rmtree(path)
    return [path.name for path in old]
