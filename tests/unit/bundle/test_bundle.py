"""The bundle as a host gets it: its bytes, its launcher, its own interpreter, `unpack.py`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT

REPOSITORY = CHECKOUT
MAX_BYTES = 25_000_000
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of ELF files (elf(5))
ARCHITECTURES = list(MACHINES)
EM_BPF = 247

IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import throughline.config.model, throughline.telemetry.spans
import charset_normalizer, requests, urllib3, yaml
import throughline.export.otlp_http, throughline.export.encoding, throughline.telemetry.metrics
from google.protobuf.internal import api_implementation
assert api_implementation.Type() == "upb", api_implementation.Type()
assert yaml.safe_load("a: [1]") == {"a": [1]}
assert "grpc" not in sys.modules
import throughline.export.otlp_grpc
for name in ("grpc", "yaml", "opentelemetry.proto.trace.v1.trace_pb2", "throughline"):
    __import__(name)
    assert sys.modules[name].__file__.startswith(sys.argv[1]), name
import grpc
grpc.insecure_channel("127.0.0.1:1").close()
print(grpc.__version__)
import ctypes
for name in ("libz.so.1", "libelf.so.1", "libbpf.so.1"):
    library = ctypes.CDLL(f"{sys.argv[1]}/../{name}")
assert library.libbpf_major_version() == 1
import ssl, subprocess
ssl.create_default_context()
subprocess.run([sys.executable, "-c", "import json"], check=True)
for line in open("/proc/self/maps"):
    mapped = line.split(None, 5)[5:]
    if mapped and mapped[0].startswith("/"):
        print("mapped", mapped[0].strip())
"""


def run(
    *command: str | Path, env: dict[str, str] | None = None, seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=os.environ | (env or {}),
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def bundles() -> dict[str, Path]:
    """The bundles of this tree by architecture; built now unless `make bundle` has just done so."""
    built = run("make", "-C", REPOSITORY, "bundle")
    assert built.returncode == 0, built.stdout + built.stderr
    found = re.findall(r"^bundle: (dist/\S+-linux-(\w+)\.tar\.gz)", built.stdout, re.MULTILINE)
    assert [arch for _, arch in found] == ARCHITECTURES, built.stdout
    return {arch: REPOSITORY / name for name, arch in found}


@pytest.fixture(scope="module")
def bundle(bundles: dict[str, Path]) -> Path:
    """The one for this machine."""
    return bundles[platform.machine()]


@pytest.fixture
def release(bundle: Path, tmp_path: Path) -> Path:
    """A fresh extraction, which the test may change."""
    target = tmp_path / "release"
    target.mkdir()
    assert run("tar", "-xzf", bundle, "-C", target).returncode == 0
    return target


def unpack(release: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(release / "bin/python", release / "unpack.py", *options)


def test_size(bundles: dict[str, Path]) -> None:
    assert max(bundle.stat().st_size for bundle in bundles.values()) <= MAX_BYTES


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code_is_of_the_architecture(bundles: dict[str, Path], arch: str) -> None:
    with tarfile.open(bundles[arch]) as archive:
        members = (archive.extractfile(member) for member in archive if member.isfile())
        heads = [reader.read(20) for reader in members if reader]
    machines = {head[18:20] for head in heads if head.startswith(b"\x7fELF")}
    assert machines == {MACHINES[arch].to_bytes(2, "little"), EM_BPF.to_bytes(2, "little")}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_archive_says_nothing_about_where_and_when_it_was_built(
    bundles: dict[str, Path], arch: str
) -> None:
    with tarfile.open(bundles[arch]) as archive:
        members = archive.getmembers()
        content = b"".join(
            reader.read() for member in members if (reader := archive.extractfile(member))
        )
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {member.mtime for member in members} == {members[0].mtime}
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "root", "root")}
    assert {m.mode for m in members if m.isfile()} == {0o644, 0o755}
    assert all(member.isfile() or member.isdir() for member in members)
    assert not [name for name in names if name.endswith((".pyc", "RECORD", "direct_url.json"))]
    assert str(REPOSITORY).encode() not in content


def test_manifest_lists_every_file(release: Path) -> None:
    manifest = json.loads((release / "MANIFEST.json").read_text())
    files = {str(p.relative_to(release)): sha256(p) for p in release.rglob("*") if p.is_file()}
    del files["MANIFEST.json"]
    assert manifest["files"] == files
    assert manifest["arch"] == platform.machine()
    assert manifest["python"] == [3, 13]
    objects = {path.stem for path in (REPOSITORY / "bpf").glob("*/*.bpf.c")}
    objects |= {f"{name}-legacy.bpf" for name in ("observe", "headers", "packets", "tls")}
    objects |= {f"{name}-fexit.bpf" for name in ("restore", "unix")}
    assert {Path(name).stem for name in files if name.endswith(".bpf.o")} == objects


@pytest.mark.timeout(900)  # a whole build, where others use the processors, too
def test_two_builds_in_different_folders_are_equal(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "with a longer path"
    other.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("agent", "bpf"):
        shutil.copytree(REPOSITORY / name, other / name, ignore=ignored)
    for name in ("Makefile", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, other / name)
    (other / "build").mkdir()
    for name in (f"wheels-{platform.machine()}", "debian"):
        (other / "build" / name).symlink_to(REPOSITORY / "build" / name)
    built = run("make", "-C", other, f"dist/{bundle.name}", seconds=840)
    assert built.returncode == 0, built.stdout + built.stderr
    assert sha256(other / "dist" / bundle.name) == sha256(bundle)


def test_nothing_of_the_host_is_used(release: Path) -> None:
    """Neither its Python nor its C library: every shared object is a file of the release."""
    unpacked = unpack(release)
    assert unpacked.returncode == 0, unpacked.stderr
    imported = run(release / "bin/python", "-c", IMPORTS, release / "lib/python")
    assert imported.returncode == 0, imported.stderr
    mapped = {line[7:] for line in imported.stdout.splitlines() if line.startswith("mapped ")}
    assert {Path(path).name for path in mapped} >= {"throughline", "libc.so.6", "libssl.so.3"}
    libraries = [path for path in mapped if ".so" in path]
    assert [path for path in libraries if not path.startswith(f"{release}/")] == []
    version = run(release / "bin/throughline", "--version", env={"PATH": "/usr/bin:/bin"})
    assert version.stdout == f"throughline {manifest_version(release)}\n", version.stderr


def test_no_file_needs_a_newer_glibc_than_the_release_brings(release: Path) -> None:
    def newest(path: Path) -> tuple[int, ...]:
        found = re.findall(rb"\0GLIBC_([0-9.]+)(?=\0)", path.read_bytes())
        return max((tuple(map(int, one.split(b"."))) for one in found), default=(0,))

    elfs = [
        path
        for path in release.rglob("*")
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
    ]
    compiled = [path for path in elfs if path.suffix != ".o"]
    assert len(compiled) > 20
    brought = newest(release / "lib/runtime/libc.so.6")
    assert [path for path in compiled if newest(path) > brought] == []


def manifest_version(release: Path) -> str:
    version: str = json.loads((release / "MANIFEST.json").read_text())["version"]
    return version


def test_agent_starts_through_a_link_and_ignores_the_callers_python(
    release: Path, tmp_path: Path
) -> None:
    (tmp_path / "current").symlink_to(release)
    hostile = tmp_path / "hostile"
    for name in ("throughline", "json", "yaml", "opentelemetry"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise SystemExit('from outside')\n")
    environment = {"PYTHONPATH": str(hostile), "PYTHONHOME": str(hostile)}
    started = run(tmp_path / "current/bin/throughline", "--version", env=environment)
    assert started.stdout == f"throughline {manifest_version(release)}\n", started.stderr
    assert not list(release.rglob("*.pyc")), "the agent must not write into its release"


def test_unpack_twice(release: Path) -> None:
    assert unpack(release, "--check").returncode == 0
    assert not (release / "UNPACKED").exists()
    assert unpack(release).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*")}
    again = unpack(release)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before
    assert (release / "UNPACKED").exists()
    assert {path.stat().st_mode & 0o777 for path in before if path.suffix == ".pyc"} == {0o644}


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"#")


def link(path: Path) -> None:
    copy = path.parents[1] / "copy"
    path.rename(copy)
    path.symlink_to(copy)


@pytest.mark.parametrize(
    ("path", "tamper"),
    [
        ("lib/python/throughline/__init__.py", change),
        ("bpf/observe.bpf.o", change),
        ("lib/libbpf.so.1", Path.unlink),
        ("lib/python/sitecustomize.py", Path.touch),
        ("bin/throughline", link),
        ("MANIFEST.json", change),
        ("lib/python3.13/os.py", change),
    ],
    ids=[
        "module",
        "object",
        "removed",
        "added",
        "link",
        "manifest",
        "standard library",
    ],
)
def test_unpack_refuses(release: Path, path: str, tamper: Callable[[Path], None]) -> None:
    tamper(release / path)
    refused = unpack(release)
    assert refused.returncode == 1
    assert path in refused.stderr
    assert not (release / "UNPACKED").exists()
    assert not list(release.rglob("*.pyc"))


def test_tests_run_with_the_versions_that_the_bundle_ships() -> None:
    def versions(path: str) -> dict[str, str]:
        found = re.findall(r"^([\w.-]+)==([\w.]+)", (REPOSITORY / path).read_text(), re.MULTILINE)
        return {name.lower().replace("_", "-"): version for name, version in found}

    installed = versions(".ci/constraints.txt")
    shipped = versions("agent/bundle/requirements.lock")
    assert shipped
    assert {name: installed.get(name) for name in shipped} == shipped


def test_unit_is_well_formed(release: Path, tmp_path: Path) -> None:
    text = (release / "systemd/throughline.service").read_text()
    assert "\nExecStart=/opt/throughline/current/bin/throughline run " in text
    unit = tmp_path / "throughline.service"
    unit.write_text(text.replace("/opt/throughline/current/bin/throughline", "/bin/true"))
    verified = run("systemd-analyze", "verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox is not installed")
def test_a_host_needs_no_c_library_of_its_own(release: Path, tmp_path: Path) -> None:
    """As with musl: a root with one static program, which has no glibc and no loader."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "readlink"):
        (root / "bin" / name).symlink_to("busybox")
    release.rename(root / "release")
    environment = {"PATH": "/bin"}
    ready = run("/usr/sbin/chroot", root, "/release/bin/python", "/release/unpack.py")
    assert ready.returncode == 0, ready.stderr
    said = run("/usr/sbin/chroot", root, "/release/bin/throughline", "--version", env=environment)
    assert said.stdout.startswith("throughline "), said.stderr
