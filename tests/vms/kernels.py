"""Debian's cloud kernels: found in package lists, unpacked, made bootable.

A kernel of a box is two files beside it, `vmlinuz-RELEASE` and `initrd-RELEASE`, and its modules,
which are in the box, like the package lists. The initrd is busybox with the few modules that reach
the root file system.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

META = "linux-image-cloud-{}"
# The packages of one kernel: before and after Debian split the image into parts.
PARTS = re.compile(r"linux-(image|binary|modules)-\d[^,\s]*")
BUSYBOX = Path("/bin/busybox")
# What it takes to mount the root disk, besides what these depend on. ext4 asks for crc32c by name.
WANTED = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "crc32c_cryptoapi")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
tries=0
until [ -b /dev/vda ] || [ "$tries" -eq 200 ]; do tries=$((tries + 1)); usleep 50000; done
mount -t ext4 -o rw,noatime /dev/vda /root || { echo "initrd: no root disk"; poweroff -f; }
umount /sys /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """An apt with package lists: the words before it, and the directory that it sees as `/`."""

    words: tuple[str, ...]
    root: Path


def _ask(archive: Archive, *words: str) -> str:
    answer = subprocess.run(
        [*archive.words, *words],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    return answer.stdout


def _version(text: str) -> list[int]:
    """Sorts kernel versions: all numbers in front of the Debian revision."""
    return [int(number) for number in re.findall(r"\d+", text.partition("-")[0])]


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for stanza in text.strip().split("\n\n"):
        yield dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))


def _image(archive: Archive, line: str, debian: str) -> str:
    """The package with the latest kernel of a release line, `6.1`, or `newest` of all."""
    meta = META.format(debian)
    found = list(_stanzas(_ask(archive, "apt-cache", "show", meta)))
    if line != "newest":
        found = [one for one in found if one["Version"].startswith(f"{line}.")]
    if not found:
        raise LookupError(f"the archive has no {meta} {line}")
    latest = max(found, key=lambda one: _version(one["Version"]))
    return next(word for word in latest["Depends"].split() if PARTS.fullmatch(word))


def _parts(archive: Archive, image: str) -> list[str]:
    """The package and those it depends on that hold the kernel and its modules."""
    parts, queue = [], [image]
    while queue:
        package = queue.pop()
        if package in parts:
            continue
        parts.append(package)
        for one in _stanzas(_ask(archive, "apt-cache", "show", package)):
            queue += [word for word in one.get("Depends", "").split() if PARTS.fullmatch(word)]
    return parts


def install(root: Path, line: str, *, archive: Archive | None = None, debian: str = "amd64") -> str:
    """Puts a kernel and its modules into the root and returns its release, `6.1.0-50-cloud-amd64`.

    They come from the root's own apt where no other is given. Unpacked rather than installed: the
    packages' scripts would only make a slower initrd.
    """
    archive = archive or Archive(("chroot", str(root)), root)
    image = _image(archive, line, debian)
    release = image.removeprefix("linux-image-")
    downloads = root / "var/tmp" / release
    downloads.mkdir(parents=True)
    seen = f"/{downloads.relative_to(archive.root)}"
    subprocess.run(
        [
            *(*archive.words, "sh", "-c", 'cd "$0" && exec apt-get "$@"', seen),
            *("--quiet", "-o", "APT::Sandbox::User=root", "download", *_parts(archive, image)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    unpacked = downloads / "unpacked"
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    found = [*unpacked.rglob(f"modules/{release}")]
    if len(found) != 1:
        raise FileNotFoundError(f"{image} has no directory modules/{release}")
    shutil.copytree(found[0], root / "usr/lib/modules" / release, symlinks=True)
    images = [*unpacked.rglob(f"vmlinuz-{release}"), *unpacked.rglob(f"{release}/vmlinuz")]
    shutil.copy(images[0], root / "boot" / f"vmlinuz-{release}")
    shutil.rmtree(downloads)
    # quiet: Debian's packages of the newest kernels no longer have the lists that depmod looks for
    subprocess.run(["depmod", "--basedir", root, release], check=True, stderr=subprocess.DEVNULL)
    return release


def _name(file: str) -> str:
    """A module's name in the spelling of modprobe: no folder, no ending, underscores."""
    return Path(file).name.partition(".ko")[0].replace("-", "_")


def _module_files(modules: Path, wanted: Sequence[str]) -> list[str]:
    """The files of the wanted modules and all they depend on, in the order to load them."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, after = line.partition(":")
        needs[file] = after.split()
    files = {_name(file): file for file in needs}
    order: list[str] = []

    def add(file: str) -> None:
        for one in needs[file]:
            add(one)
        if file not in order:
            order.append(file)

    for name in wanted:
        if name in files:  # else it is built in, or this kernel does not have it
            add(files[name])
    return order


def _uncompressed(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(content)
    if file.suffix == ".gz":
        return gzip.decompress(content)
    return content


def _entry(archive: gzip.GzipFile, name: str, *, mode: int, content: bytes = b"") -> None:
    """One file of a cpio archive in the `newc` format that the kernel reads."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    archive.write(header + b"\0" * (-len(header) % 4))
    archive.write(content + b"\0" * (-len(content) % 4))


def write_initrd(
    file: Path,
    *,
    modules: Path,
    wanted: Sequence[str] = WANTED,
    init: str = INIT,
    busybox: Path = BUSYBOX,
) -> None:
    """Writes the initrd for the kernel whose modules are in `modules` (…/lib/modules/RELEASE)."""
    order = _module_files(modules, wanted)
    with gzip.GzipFile(file, "wb", compresslevel=6, mtime=0) as archive:
        for folder in ("bin", "dev", "modules", "proc", "root", "sys"):
            _entry(archive, folder, mode=stat.S_IFDIR | 0o755)
        executable = stat.S_IFREG | 0o755
        _entry(archive, "init", mode=executable, content=init.encode())
        _entry(archive, "bin/busybox", mode=executable, content=busybox.read_bytes())
        names = [f"{_name(one)}.ko" for one in order]
        for name, one in zip(names, order, strict=True):
            content = _uncompressed(modules / one)
            _entry(archive, f"modules/{name}", mode=stat.S_IFREG | 0o644, content=content)
        listed = "".join(f"{name}\n" for name in names).encode()
        _entry(archive, "modules/order", mode=stat.S_IFREG | 0o644, content=listed)
        _entry(archive, "TRAILER!!!", mode=0)
    file.chmod(0o644)
