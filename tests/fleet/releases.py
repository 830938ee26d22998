"""Makes further releases from a bundle: another version, another unit, or a broken release.

    make(bundle, directory, version="0.2.0", fault="unhealthy")

Also a command, for playbooks and runs by hand (standard library only):

    python -m tests.fleet.releases --output build/releases --version 0.2.0 --fault crashes

The bundle's archive is written anew with a few files changed and the manifest's SHA-256 made to
fit, so that it is a release like any other to the roles; the rest is the bundle's, byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import platform
import struct
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

DIST = Path(__file__).resolve().parents[2] / "dist"
PATTERN = f"throughline-*-linux-{platform.machine()}.tar.gz"  # of hosts on this machine
MANIFEST = "MANIFEST.json"
UNIT = "systemd/throughline.service"
START = "lib/start.py"
VERSION = "lib/python/throughline/__init__.py"
ABI = "lib/python/throughline/bpf/abi.py"
ABI_SECTION = b".rodata.config"

# The defects of broken releases, as code that runs before the agent's own.
FAULTS = {
    "none": "",
    # refuses every configuration
    "refuses": """
if sys.argv[1:2] == ["run"] or sys.argv[1:3] == ["config", "check"]:
    print("throughline: export: this release wants it otherwise", file=sys.stderr)
    sys.exit(2)
""",
    # ends right after each start
    "crashes": """
if sys.argv[1:2] == ["run"]:
    print("CRITICAL this release ends at once", file=sys.stderr)
    sys.exit(1)
""",
    # becomes healthy, and ends within 2 seconds
    "dies": """
import os
import threading

from throughline.agent.status import StatusWriter

write = StatusWriter.write


def write_and_end(self, status):
    write(self, status)
    if status["healthy"]:
        threading.Timer(1.7, os._exit, [1]).start()


StatusWriter.write = write_and_end
""",
    # runs and answers, but cannot attach the group headers
    "unhealthy": """
import errno

from throughline.features.programs import Programs


def attach_headers(self):
    raise OSError(errno.EINVAL, "this release cannot attach it")


Programs.attach_headers = attach_headers
""",
    # runs, attaches nothing and ignores signals
    "hangs": """
if sys.argv[1:2] == ["run"]:
    import signal
    import time

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)
""",
}


def newest(directory: Path = DIST) -> Path:
    """The newest bundle. Raises FileNotFoundError when there is none."""
    found = sorted(directory.glob(PATTERN), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no agent bundle in {directory}: run make bundle")
    return found[-1]


def make(
    bundle: Path,
    directory: Path,
    *,
    version: str,
    fault: str = "none",
    service: Sequence[str] = (),
    abi: int | None = None,
) -> Path:
    """Writes a release below `directory` and returns its bundle.

    `fault` is one of FAULTS, `service` are lines to add to the unit's section [Service], `abi` is
    the version of the ABI that it says to have. The same arguments give the same bytes.
    """
    with tarfile.open(bundle, "r:gz") as archive:
        members = archive.getmembers()
        contents = {
            member.name: reader.read()
            for member in members
            if (reader := archive.extractfile(member)) is not None
        }
    manifest = json.loads(contents[MANIFEST])
    old = f'__version__ = "{manifest["version"]}"'
    _replace(contents, VERSION, old, f'__version__ = "{version}"')
    manifest["version"] = version
    if fault != "none":
        before = "from throughline.commands.cli import main"
        _replace(contents, START, before, f"{FAULTS[fault]}\n{before}")
    if service:
        _replace(contents, UNIT, "[Service]\n", "\n".join(["[Service]", *service, ""]))
    if abi is not None:
        _set_abi(contents, abi)
    manifest["files"] = {
        path: hashlib.sha256(contents[path]).hexdigest() for path in manifest["files"]
    }
    contents[MANIFEST] = json.dumps(manifest, indent=1).encode() + b"\n"
    name = "-".join(
        [version, *([fault] if fault != "none" else []), *([f"abi{abi}"] if abi else [])]
    )
    target = directory / f"throughline-{name}-linux-x86_64.tar.gz"
    directory.mkdir(parents=True, exist_ok=True)
    _write(target, members, contents)
    return target


def _replace(contents: dict[str, bytes], path: str, old: str, new: str) -> None:
    """Replaces a text. Raises ValueError where it is not there once: the bundle has changed."""
    text = contents[path].decode()
    if text.count(old) != 1:
        raise ValueError(f"{path}: found {old!r} {text.count(old)} times, required once")
    contents[path] = text.replace(old, new).encode()


def _set_abi(contents: dict[str, bytes], version: int) -> None:
    text = contents[ABI].decode()
    present = int(text.partition("ABI_VERSION = ")[2].partition("\n")[0])
    _replace(contents, ABI, f"ABI_VERSION = {present}\n", f"ABI_VERSION = {version}\n")
    for path in [path for path in contents if path.endswith(".bpf.o")]:
        content = bytearray(contents[path])
        offset = _section_offset(content, ABI_SECTION)
        if struct.unpack_from("<I", content, offset)[0] != present:
            raise ValueError(f"{path}: struct tl_config does not begin with ABI {present}")
        struct.pack_into("<I", content, offset, version)
        contents[path] = bytes(content)


def _section_offset(content: bytes | bytearray, wanted: bytes) -> int:
    """Where the content of a section is in a 64-bit little-endian ELF file, see elf(5)."""
    (table,) = struct.unpack_from("<Q", content, 40)  # e_shoff
    size, count, names = struct.unpack_from("<HHH", content, 58)  # e_shentsize, e_shnum, e_shstrndx
    (strings,) = struct.unpack_from("<Q", content, table + names * size + 24)  # sh_offset
    for number in range(count):
        header = table + number * size
        name = strings + struct.unpack_from("<I", content, header)[0]
        if content[name : name + len(wanted) + 1] == wanted + b"\0":
            return int(struct.unpack_from("<Q", content, header + 24)[0])
    raise ValueError(f"no section {wanted.decode()}")


def _write(target: Path, members: Sequence[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member in members:
            content = contents.get(member.name)
            if content is None:
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    part = target.with_suffix(".part")
    part.write_bytes(gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0))
    part.replace(target)


def main() -> int:
    """Writes a bundle and prints its path. Returns 1 where dist/ has none to make it from."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.releases", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to start from (the newest in dist/)")
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--version", required=True)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--service", action="append", default=[], help="line for [Service]")
    parser.add_argument("--abi", type=int)
    options = parser.parse_args()
    try:
        made = make(
            options.bundle or newest(),
            options.output,
            version=options.version,
            fault=options.fault,
            service=options.service,
            abi=options.abi,
        )
    except (OSError, ValueError, KeyError) as error:
        print(f"releases: {error}", file=sys.stderr)
        return 1
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
