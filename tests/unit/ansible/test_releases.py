"""Releases on a real disk, the record of those that were healthy, and the files they write."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pwd
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import plugin, run_program


def bundle(
    folder: Path, content: str, extra: tarfile.TarInfo | None = None, *, arch: str | None = None
) -> tuple[Path, str]:
    """A small bundle with the real unpack.py, and its SHA-256."""
    unpack = CHECKOUT / "agent/bundle/release/unpack.py"
    files = {
        "bin/python": f'#!/bin/sh\nexec {sys.executable} -I -S -B "$@"\n'.encode(),
        "unpack.py": unpack.read_bytes(),
        "lib/python/content.py": content.encode(),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"version": "1.0", "files": hashes, **({"arch": arch} if arch else {})}
    files["MANIFEST.json"] = json.dumps(manifest).encode()
    path = folder / f"bundle-{hashlib.sha256(content.encode()).hexdigest()[:8]}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def install(base: Path, path: Path, sha256: str) -> None:
    plugin("module_utils.release").unpack(path, run_program, sha256=sha256, base=base)


def test_a_release_is_unpacked_verified_and_made_ready(tmp_path: Path) -> None:
    release = plugin("module_utils.release")
    path, sha256 = bundle(tmp_path, "x = 1\n")
    base = tmp_path / "opt"
    install(base, path, sha256)
    final = base / "releases" / sha256
    assert [entry.name for entry in final.parent.iterdir()] == [sha256]
    assert list(final.glob("UNPACKED*"))
    assert release.make_ready(final, run_program) == (False, None)
    (final / "lib/python/content.py").write_text("x = 2\n", encoding="utf-8")
    changed, problem = release.make_ready(final, run_program)
    assert not changed
    assert "lib/python/content.py" in problem
    install(base, path, sha256)  # over the damaged one
    assert release.make_ready(final, run_program) == (False, None)


def test_a_wrong_hash_leaves_nothing_behind(tmp_path: Path) -> None:
    path, _sha256 = bundle(tmp_path, "x = 1\n")
    with pytest.raises(ValueError, match="required 0000"):
        install(tmp_path / "opt", path, "0" * 64)
    assert not list((tmp_path / "opt").rglob("*"))


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("/etc/passwd", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "../../../etc"),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    extra = tarfile.TarInfo(name)
    extra.type, extra.linkname = kind, link
    path, sha256 = bundle(tmp_path, "x = 1\n", extra)
    with pytest.raises(ValueError, match=f"{name}: "):
        install(tmp_path / "opt", path, sha256)
    assert not (tmp_path / "opt").exists(), "a host without a release stays as it was"


def test_a_bundle_for_another_architecture_is_named(tmp_path: Path) -> None:
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    path, sha256 = bundle(tmp_path, "x = 1\n", arch=other)
    with pytest.raises(ValueError, match=f"found a bundle for {other}, required .*Remedy: "):
        install(tmp_path / "opt", path, sha256)
    assert not (tmp_path / "opt").exists()


def test_a_cut_bundle_is_refused(tmp_path: Path) -> None:
    path, _ = bundle(tmp_path, f"x = {random.Random(1).randbytes(20000).hex()!r}\n")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="not a readable bundle: "):
        install(tmp_path / "opt", path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "opt").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("size=64k", "No space left on device. A release needs 80 MB there. Remedy: make room"),
        ("noexec", "mounted noexec, required .*Remedy: mount it with exec"),
    ],
)
def test_a_file_system_that_cannot_hold_a_release_is_named(
    tmp_path: Path, options: str, says: str
) -> None:
    path, sha256 = bundle(tmp_path, f"x = {random.Random(1).randbytes(99000).hex()!r}\n")
    opt = tmp_path / "opt"
    opt.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(opt)], check=True)
    try:
        with pytest.raises(ValueError, match=says):
            install(opt / "throughline", path, sha256)
        assert not list(opt.iterdir())
    finally:
        subprocess.run(["umount", str(opt)], check=True)


def serve(base: Path, sha256: str, *, going_back: bool = False) -> None:
    """What throughline_service does with links and record when a release is healthy."""
    release, served = plugin("module_utils.release"), plugin("module_utils.served")
    record = served.read_served(base)
    previous = served.wanted_previous(base, record, sha256, going_back=going_back)
    release.point(base, "previous", previous)
    release.point(base, "current", sha256)
    entry = {"previous": previous, "rolled_back_from": None, "groups": [], "files": {}}
    served.note_served(base, sha256, entry)


def links(base: Path) -> tuple[str | None, str | None]:
    linked = plugin("module_utils.release").linked_release
    return linked(base, "current"), linked(base, "previous")


def test_the_current_and_the_previous_release_stay(tmp_path: Path) -> None:
    release = plugin("module_utils.release")
    base = tmp_path / "opt"
    names = []
    for number in range(4):
        path, sha256 = bundle(tmp_path, f"x = {number}\n")
        install(base, path, sha256)
        serve(base, sha256)
        serve(base, sha256)  # a repeated run moves nothing
        names.append(sha256)
    assert release.prune(base) == sorted(names[:2])
    assert links(base) == (names[3], names[2])
    assert (base / "current/MANIFEST.json").is_file()
    assert release.prune(base) == []
    assert set(plugin("module_utils.served").read_served(base)["releases"]) == set(names[2:])
    serve(base, names[2], going_back=True)
    assert links(base) == (names[2], None)
    assert release.prune(base) == [names[3]]


def test_a_release_that_was_never_healthy_does_not_become_the_previous_one(tmp_path: Path) -> None:
    base = tmp_path / "opt"
    good, tried, next_one = (f"{number}" * 64 for number in range(3))
    for name in (good, tried, next_one):
        (base / "releases" / name).mkdir(parents=True)
    serve(base, good)
    release = plugin("module_utils.release")
    release.point(base, "previous", good)
    release.point(base, "current", tried)  # and the run was cut short
    serve(base, next_one)
    assert links(base) == (next_one, good)


def test_the_record_is_for_root_only_and_survives_damage(tmp_path: Path) -> None:
    served = plugin("module_utils.served")
    served.note_served(tmp_path, "a", {"previous": None})
    assert (tmp_path / "served.json").stat().st_mode & 0o7777 == 0o600
    (tmp_path / "served.json").write_text("{", encoding="utf-8")
    assert served.read_served(tmp_path) == {"serving": None, "releases": {}}


def test_a_file_is_written_once_and_keeps_its_mode(tmp_path: Path) -> None:
    files = plugin("module_utils.files")
    path = tmp_path / "folder/config.yaml"
    assert files.write_file(path, "a: 1\n", mode=0o640) is True
    path.chmod(0o604)
    assert files.write_file(path, "a: 1\n") is False
    assert files.write_file(path, "a: 2\n") is True
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o7777) == ("a: 2\n", 0o604)
    assert files.write_file(path, None) is True
    assert files.write_file(path, None) is False
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_run_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process id comes back one day."""
    release, served = plugin("module_utils.release"), plugin("module_utils.served")
    path, sha256 = bundle(tmp_path, "x = 1\n")
    base = tmp_path / "opt"
    monkeypatch.setattr("os.getpid", lambda: 4711)
    (base / f"releases/.{sha256}.4711/bin").mkdir(parents=True)
    (base / ".current.4711").symlink_to("nowhere")
    (base / ".served.json.4711").write_text("{", encoding="utf-8")
    install(base, path, sha256)
    assert release.point(base, "current", sha256)
    served.note_served(base, sha256, {"previous": None})
    assert sorted(entry.name for entry in base.iterdir()) == ["current", "releases", "served.json"]
    assert [entry.name for entry in (base / "releases").iterdir()] == [sha256]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_user_can_reach_a_release_whatever_umask_root_has(tmp_path: Path, umask: int) -> None:
    files, release = plugin("module_utils.files"), plugin("module_utils.release")
    base = tmp_path / "opt/throughline"
    own = [base.parent, base, base / "releases", base / "releases/abc"]
    before = os.umask(umask)
    try:
        assert release.open_directories(base, "abc", check=False)
        files.make_directory(own[-1])
        assert [path.stat().st_mode & 0o777 for path in own] == [0o755] * 4
        assert not release.open_directories(base, "abc", check=True)
        for path in own[1:]:  # as versions before this one left them
            path.chmod(0o777 & ~umask | 0o700)
        is_closed = umask != 0o022
        assert release.open_directories(base, "abc", check=True) == is_closed
        assert release.open_directories(base, "abc", check=False) == is_closed
        assert [path.stat().st_mode & 0o777 for path in own] == [0o755] * 4
        assert files.write_file(tmp_path / "etc/unit.d/file.conf", "text")
        assert (tmp_path / "etc/unit.d").stat().st_mode & 0o777 == 0o755
        assert (tmp_path / "etc/unit.d/file.conf").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_configuration_is_checked_as_the_agents_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root can read every file that it names, and the agent cannot. A drop-in may add groups."""
    unit, ran = plugin("module_utils.unit"), []

    def run(command: list[str]) -> tuple[int, str, str]:
        if command[0] == "systemctl":
            return 0, "SupplementaryGroups=root 4242 no-such-group\n", ""
        ran.append(command)
        return 0, "", ""

    monkeypatch.setattr(unit, "USER", "nobody")
    unit.check_config(run, tmp_path, "/etc/throughline/config.yaml")
    found = pwd.getpwnam("nobody")
    words = ran[0][3:]
    assert words[:4] == [
        "setpriv",
        f"--reuid={found.pw_uid}",
        f"--regid={found.pw_gid}",
        f"--groups=0,4242,{found.pw_gid}",
    ]
    assert words[-4:] == [
        f"{tmp_path}/bin/throughline",
        "config",
        "check",
        "/etc/throughline/config.yaml",
    ]
    monkeypatch.setattr(unit.shutil, "which", lambda name: None)
    unit.check_config(run, tmp_path, "x")
    monkeypatch.undo()
    monkeypatch.setattr(unit, "USER", "no-such-user")
    unit.check_config(run, tmp_path, "x")
    assert [one[3] for one in ran[1:]] == [f"{tmp_path}/bin/throughline"] * 2
