"""Files with a proxy: those of the packages, other versions, and files that are none."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import elffile
from throughline.bpf import abi
from throughline.elf.elf import Elf
from throughline.probes import arch
from throughline.runtimes.proxies import haproxy, nginx, varnish
from throughline.runtimes.proxies.proxy import Proxy, UnsupportedError

HAPROXY, NGINX = Path("/usr/sbin/haproxy"), Path("/usr/sbin/nginx")
VERSION = b"2.6.12-"


def look(find: Callable[[Elf], Proxy | None], path: Path) -> Proxy | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        elf = arch.open_elf(fd)
        assert elf
        return find(elf)
    finally:
        os.close(fd)


def of_version(folder: Path, version: bytes) -> Path:
    """Debian's HAProxy that says that it is another version."""
    content = HAPROXY.read_bytes()
    assert content.count(VERSION) > 0
    path = folder / "haproxy"
    path.write_bytes(content.replace(VERSION, version.ljust(len(VERSION), b"-")))
    return path


def test_haproxy_of_debian() -> None:
    found = look(haproxy.find, HAPROXY)
    assert found
    assert found.name.startswith("HAProxy 2.6.")
    assert found.kind is abi.RuntimeKind.RUNTIME_HAPROXY
    assert [(site.program, site.returns) for site in found.sites] == [
        ("tl_hap_works", False),
        ("tl_hap_rests", True),
        ("tl_hap_makes", False),
        ("tl_hap_made", True),
    ]
    assert not any(site.single_stepped for site in found.sites)
    assert struct.unpack("<IHxx", found.packed) == (0x00200000, 104)


@pytest.mark.parametrize(
    ("version", "flag"),
    [(b"2.4.1", 0), (b"2.5.9", 0), (b"2.8.99", 0x00200000), (b"3.4", 0x00200000)],
)
def test_other_versions_of_haproxy(tmp_path: Path, version: bytes, flag: int) -> None:
    found = look(haproxy.find, of_version(tmp_path, version))
    assert found
    assert abi.ProxyBinary(*abi.PROXY_BINARY.unpack(found.packed)).no_descriptor == flag


@pytest.mark.parametrize("times", [1, 2])
def test_functions_that_do_not_agree(tmp_path: Path, times: int) -> None:
    """The code of sock_drain() reads another number of the connection, or none."""
    content = HAPROXY.read_bytes()
    drain = b"\x8b\x5f\x68"  # mov 0x68(%rdi),%ebx
    assert drain in content
    path = tmp_path / "haproxy"
    path.write_bytes(content.replace(drain, b"\x8b\x5f\x70" if times == 1 else b"\x90\x90\x90"))
    with pytest.raises(UnsupportedError):
        look(haproxy.find, path)


@pytest.mark.parametrize("version", [b"2.3.21", b"3.5", b"4.0.0", b"26.1", b"2,6.1", b"x"])
def test_versions_of_haproxy_that_are_not_known(tmp_path: Path, version: bytes) -> None:
    with pytest.raises(UnsupportedError):
        look(haproxy.find, of_version(tmp_path, version))


def test_haproxy_that_does_not_say_its_version(tmp_path: Path) -> None:
    path = tmp_path / "haproxy"
    path.write_bytes(elffile.build({haproxy.WORKS: elffile.PUSH, haproxy.MAKES: elffile.PUSH}))
    with pytest.raises(UnsupportedError):
        look(haproxy.find, path)


def test_nginx_of_debian() -> None:
    found = look(nginx.find, NGINX)
    assert found
    assert found.kind is abi.RuntimeKind.RUNTIME_NGINX
    programs = [(site.program, site.returns) for site in found.sites]
    assert programs == [("tl_nginx_asks", False), ("tl_nginx_asked", True)]
    assert not any(site.single_stepped for site in found.sites)


def test_varnish(tmp_path: Path) -> None:
    path = tmp_path / "varnishd"
    functions = {varnish.FETCHES: elffile.PUSH, varnish.BEGINS: elffile.PUSH}
    path.write_bytes(elffile.build(functions))
    found = look(varnish.find, path)
    assert found
    assert found.kind is abi.RuntimeKind.RUNTIME_VARNISH
    assert [(site.program, site.returns) for site in found.sites] == [
        ("tl_var_works", False),
        ("tl_hap_rests", True),
        ("tl_var_makes", False),
        ("tl_hap_made", True),
    ]
    path.write_bytes(elffile.build({varnish.FETCHES: elffile.PUSH}))
    assert look(varnish.find, path) is None


def test_other_files(tmp_path: Path) -> None:
    assert look(haproxy.find, NGINX) is None
    assert look(nginx.find, HAPROXY) is None
    assert look(varnish.find, HAPROXY) is None
    python = Path(sys.executable).resolve()
    assert look(haproxy.find, python) is None
    assert look(nginx.find, python) is None
    path = tmp_path / "half"
    path.write_bytes(elffile.build({haproxy.WORKS: elffile.PUSH, nginx.CONNECT: elffile.PUSH}))
    assert look(haproxy.find, path) is None
    assert look(nginx.find, path) is None


def test_nginx_without_symbols(tmp_path: Path) -> None:
    path = tmp_path / "nginx"
    content = bytearray(NGINX.read_bytes())
    name = nginx.CONNECT.encode() + b"\0"
    at = content.index(name)
    content[at] = ord("x")
    path.write_bytes(content)
    assert look(nginx.find, path) is None
