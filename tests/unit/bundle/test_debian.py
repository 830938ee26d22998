"""Debian's packages, read without dpkg, and fetched only as the lock has them."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from bundle import debian

LIBRARY = "usr/lib/x86_64-linux-gnu/libz.so.1"


def package(*, data: str = "data.tar.xz") -> bytes:
    """A .deb with one file and a link to it, and members before it of odd and even sizes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(f"./{LIBRARY}.3")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"lib"))
        link = tarfile.TarInfo(f"./{LIBRARY}")
        link.type, link.linkname = tarfile.SYMTYPE, "libz.so.1.3"
        archive.addfile(link)
        folder = tarfile.TarInfo("./usr/share/doc")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    made = b"!<arch>\n"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", data: buffer.getvalue()}
    for name, content in members.items():
        packed = lzma.compress(content) if name == data else content
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(packed):<10}`\n".encode()
        made += packed + b"\n" * (len(packed) % 2)
    return made


def lock(folder: Path, content: bytes) -> Path:
    """A lock with one package, which has this content."""
    path = folder / "debian.lock"
    digest = hashlib.sha256(content).hexdigest()
    path.write_text(f"# a comment\namd64 zlib1g 1:1.3 pool/main/z/zlib1g_1.3_amd64.deb {digest}\n")
    return path


def test_files_of_a_package_are_read_also_by_a_link() -> None:
    made = package()
    assert dict(debian.members(made)) == {f"{LIBRARY}.3": b"lib"}
    assert debian.file(made, f"{LIBRARY}.3") == debian.file(made, LIBRARY) == b"lib"


@pytest.mark.parametrize("path", ["usr/lib/missing.so", "usr/share/doc"])
def test_what_is_no_file_of_a_package_is_named(path: str) -> None:
    with pytest.raises(LookupError, match=path):
        debian.file(package(), path)


@pytest.mark.parametrize("content", [b"<html>no such file</html>", package(data="data.tar.zst")])
def test_what_is_no_package_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="Debian package"):
        list(debian.members(content))


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = package(), []
    monkeypatch.setenv(debian.MIRROR, "http://mirror.example/debian/")

    def download(address: str) -> bytes:
        asked.append(address)
        return made

    monkeypatch.setattr(debian, "download", download)
    found = lock(tmp_path, made)
    for _ in range(2):
        assert debian.fetch("amd64", tmp_path / "kept", found) == {"zlib1g": made}
    assert asked == ["http://mirror.example/debian/pool/main/z/zlib1g_1.3_amd64.deb"]


def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debian.MIRROR, "http://mirror.example/debian")
    monkeypatch.setattr(debian, "download", lambda address: b"<html>a proxy's page</html>")
    with pytest.raises(LookupError, match=r"zlib1g_1\.3_amd64\.deb: its SHA-256"):
        debian.fetch("amd64", tmp_path / "kept", lock(tmp_path, package()))
    assert not list((tmp_path / "kept").iterdir())


def test_without_a_mirror_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(debian.MIRROR, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LookupError, match=debian.MIRROR):
        debian.mirror()


def test_an_architecture_that_the_lock_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="riscv64"):
        debian.fetch("riscv64", tmp_path, lock(tmp_path, b""))


def test_a_line_of_the_lock_that_is_none_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "debian.lock"
    path.write_text("amd64 zlib1g\n")
    with pytest.raises(ValueError, match="amd64 zlib1g"):
        debian.read_lock(path)
