"""Packages of a small bundle: their files, the same bytes twice, the sums and the signature."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from packages import build, collection, deb, render, rpm, tree
from tests.fixtures.paths import CHECKOUT
from throughline.config import model

RELEASE = {
    "bin/python": b"#!/bin/sh\n",
    "unpack.py": b"",
    "systemd/throughline.service": (CHECKOUT / "agent/systemd/throughline.service").read_bytes(),
    **{
        f"systemd/{name}": (CHECKOUT / "agent/systemd" / name).read_bytes()
        for name in tree.PROBE_UNITS
    },
    "MANIFEST.json": json.dumps({"version": "1.2.3", "arch": "x86_64"}).encode(),
}
UNITS = "/usr/lib/systemd/system"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "throughline-1.2.3-linux-x86_64.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in RELEASE.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(content))
    return path


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    ("make", "listing"),
    [
        pytest.param(deb.build, ("dpkg-deb", "--fsys-tarfile"), marks=needs("dpkg-deb")),
        pytest.param(rpm.build, ("rpm", "-qlp"), marks=needs("rpmbuild")),
    ],
    ids=["deb", "rpm"],
)
def test_a_package_has_the_files_of_the_roles_and_the_same_bytes_twice(
    bundle: Path, tmp_path: Path, make: Callable[..., Path], listing: tuple[str, ...]
) -> None:
    made = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        (tmp_path / name).mkdir()
        packed = tree.make(CHECKOUT, bundle)
        texts = {"summary": "the agent", "maintainer": "us <us@throughline.example>"}
        before = os.umask(umask)
        try:
            made.append(make(packed, tmp_path / name, level=1, **texts))
        finally:
            os.umask(before)
    assert made[0].read_bytes() == made[1].read_bytes()
    if listing[0] == "rpm":
        paths = set(run(*listing, made[0]).splitlines())
    else:
        unpacked = subprocess.run([*listing, str(made[0])], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            paths = {f"/{member.name.removeprefix('./')}" for member in archive}
    release = f"/opt/throughline/releases/{hashlib.sha256(bundle.read_bytes()).hexdigest()}"
    assert paths >= {f"{release}/{name}" for name in RELEASE}
    assert paths >= {
        "/opt/throughline/current",
        "/opt/throughline/PACKAGE",
        "/etc/throughline/config.yaml",
        f"{UNITS}/throughline.service",
        *(f"{UNITS}/{name}" for name in tree.PROBE_UNITS),
        f"{UNITS}/throughline.service.d/capabilities.conf",
        f"{UNITS}/run-throughline\\x2dbpf.mount",
    }


def test_scripts_are_a_shells_and_make_the_accounts_of_the_role(
    bundle: Path, tmp_path: Path
) -> None:
    packed = tree.make(CHECKOUT, bundle)
    for name, text in packed.scripts.items():
        assert "@" not in text
        script = tmp_path / name
        script.write_text(text)
        run("/bin/sh", "-n", script)
    assert "groupadd --system throughline\n" in packed.scripts["before_install"]
    assert "--no-create-home --shell /usr/sbin/nologin " in packed.scripts["before_install"]


def test_capabilities_are_those_of_the_default_groups() -> None:
    granted = render.capabilities(CHECKOUT).decode().splitlines()[-1].partition("=")[2].split()
    assert "CAP_SYS_PTRACE" in granted and "CAP_BPF" in granted
    assert "CAP_SYS_ADMIN" not in granted


def test_the_agent_accepts_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(render.config(CHECKOUT))
    assert model.load(path)


def test_the_collection_has_the_same_bytes_from_two_disks(tmp_path: Path) -> None:
    made = []
    for number in (1, 2):
        source, output = tmp_path / f"source{number}", tmp_path / f"output{number}"
        output.mkdir()
        source.mkdir()
        for name in sorted(("roles", "plugins", "playbooks", "meta"), reverse=number == 2):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, source / name, ignore=ignored)
        for name in ("galaxy.yml", "README.md"):
            shutil.copy(CHECKOUT / name, source)
        run("git", "-C", source, "init", "--quiet")
        run("git", "-C", source, "add", "--all")
        for path in source.rglob("*"):
            os.utime(path, (number, number))
        (source / f"inventory{number}.yml").write_text("password: hidden\n")
        (source / "playbooks/vault.yml").write_text("password: hidden\n")
        made.append(collection.build(source, output))
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as archive:
        names = archive.getnames()
    assert {"playbooks/site.yml", "roles/agent/tasks/main.yml", "README.md"} <= set(names)
    assert not [name for name in names if "inventory" in name or "vault" in name]


@needs("gpg")
def test_the_sums_are_signed_by_the_key_of_the_maintainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    key = "maintainer@throughline.example"
    gpg = ("gpg", "--batch", "--quiet", "--passphrase", "")
    try:
        run(*gpg, "--quick-generate-key", key, "ed25519", "sign", "never")
        (tmp_path / "file").write_text("content")
        sums = build.write_sums(tmp_path, [tmp_path / "file"])
        assert sums.read_text() == f"{hashlib.sha256(b'content').hexdigest()}  file\n"
        build.sign(sums, key)
        run(*gpg, "--output", home / "keys.gpg", "--export")
        run("gpgv", "--keyring", home / "keys.gpg", f"{sums}.asc", sums)
    finally:
        run("gpgconf", "--kill", "all")
