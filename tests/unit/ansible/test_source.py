"""Which bundle a host gets: by file or address, its SHA-256, its signature, what a proxy says."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleError  # type: ignore[import-untyped]

from tests.fixtures.plugins import plugin

BUNDLE = gzip.compress(b"a bundle", mtime=0)
SHA256 = hashlib.sha256(BUNDLE).hexdigest()
X86, ARM = (f"throughline-0.2.0-linux-{arch}.tar.gz" for arch in ("x86_64", "aarch64"))


@dataclass
class Web:
    """A server that is also a proxy: it answers each path with what `files` has for its name."""

    address: str
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"{self.address}/v0.2.0/{name}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            kind, content = served.files.get(self.path.rpartition("/")[2], ("text/plain", b""))
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if kind == "application/x-tar":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def find(architecture: str | None = "x86_64", **options: Any) -> Any:
    return plugin("plugin_utils.source").find_source(options, architecture)


def refused(*, says: str, architecture: str | None = "x86_64", **options: Any) -> str:
    """Demands that there is no bundle, with found, required and remedy."""
    with pytest.raises(plugin("plugin_utils.source").SourceError, match=says) as raised:
        find(architecture, **options)
    message = str(raised.value)
    assert message.startswith("Found ")
    assert "equired" in message and "Remedy: " in message
    return message


def test_a_directory_gives_the_bundle_of_the_hosts_architecture(tmp_path: Path) -> None:
    for number, name in enumerate((X86, ARM)):
        (tmp_path / name).write_bytes(BUNDLE)
        os.utime(tmp_path / name, (number, number))
    assert find("x86_64", bundle=str(tmp_path)).name == X86
    assert find("aarch64", bundle=str(tmp_path)).name == ARM
    assert find(None, bundle=str(tmp_path)).name == ARM, "the newest"
    message = refused(says="riscv64", architecture="riscv64", bundle=str(tmp_path))
    assert X86 in message and ARM in message


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / X86).write_bytes(BUNDLE)
    assert find(bundle=str(tmp_path / X86), bundle_sha256=SHA256.upper()).sha256 == SHA256
    refused(says=f"Found SHA-256 {SHA256} of {X86}", bundle=str(tmp_path), bundle_sha256="0" * 64)
    refused(says="64 hexadecimal digits", bundle=str(tmp_path), bundle_sha256="sha256:1234")


def test_the_controller_fetches_a_bundle_once(web: Web) -> None:
    web.files[X86] = ("application/gzip", BUNDLE)
    url = web.url("throughline-0.2.0-linux-{arch}.tar.gz")
    for _ in range(2):
        found = find(bundle_url=url, bundle_sha256={"x86_64": SHA256})
        assert (found.sha256, found.path.read_bytes()) == (SHA256, BUNDLE)
    assert web.asked == [f"/v0.2.0/{X86}"]
    found.path.write_bytes(b"damaged")
    assert find(bundle_url=url, bundle_sha256=SHA256).path.read_bytes() == BUNDLE
    refused(
        says="for aarch64", architecture="aarch64", bundle_url=url, bundle_sha256={"x86_64": "1"}
    )
    refused(says="architecture", architecture=None, bundle_url=url, bundle_sha256=SHA256)


def test_a_host_fetches_by_itself_only_where_that_is_wanted(web: Web) -> None:
    options = {"bundle_url": web.url(X86), "bundle_fetched_by": "host"}
    found = find(**options, bundle_sha256=SHA256)
    assert (found.path, found.url, found.sha256) == (None, web.url(X86), SHA256)
    assert web.asked == []
    refused(says="required its SHA-256", **options)


def test_who_fetches_is_one_of_two(tmp_path: Path) -> None:
    (tmp_path / X86).write_bytes(BUNDLE)
    refused(says="'hosts', required one", bundle=str(tmp_path), bundle_fetched_by="hosts")
    assert find(bundle=str(tmp_path), bundle_fetched_by=None).name == X86


def test_a_server_that_names_the_compression_an_encoding_gives_the_same_file(web: Web) -> None:
    web.files[X86] = ("application/x-tar", BUNDLE)
    assert find(bundle_url=web.url(X86), bundle_sha256=SHA256).path.read_bytes() == BUNDLE


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://alice:hidden@127.0.0.1:9", "http://127.0.0.1:9"),
        ("alice:hidden@127.0.0.1:9", "127.0.0.1:9"),
        ("alice:hid/hidden@127.0.0.1:9/", "127.0.0.1:9"),
        ("http://alice:hid#hidden@127.0.0.1:9", "http://127.0.0.1:9"),
        ("127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_no_credential_is_shown(
    web: Web, monkeypatch: pytest.MonkeyPatch, proxy: str, shown: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    url = f"http://bob:hidden@downloads.example/{X86}?token=hidden"
    message = refused(says="Found no answer", bundle_url=url, bundle_sha256=SHA256)
    assert f"from http://downloads.example/{X86} (by the proxy {shown})" in message
    assert "hid" not in message and "alice" not in message


@pytest.mark.parametrize("port", ["hidden", "9"])
def test_no_part_of_a_url_is_in_the_error_either(web: Web, port: str) -> None:
    url = f"http://bob:hidden@127.0.0.1:{port}/{X86}?token=hidden"
    message = refused(says="Found no answer", bundle_url=url, bundle_sha256=SHA256)
    assert "bob" not in message and "token" not in message


def test_a_proxy_is_named_only_where_it_is_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    message = refused(says="404", bundle_url=web.url("missing.tar.gz"), bundle_sha256=SHA256)
    assert "by the proxy" not in message


def test_a_proxy_is_asked_and_its_own_page_is_refused(
    web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", web.address.replace("//", "//alice:hidden@"))
    web.files[X86] = ("application/gzip", BUNDLE)
    url = f"http://downloads.example/{X86}"
    assert find(bundle_url=url, bundle_sha256=SHA256).path.read_bytes() == BUNDLE
    assert web.asked == [url]
    web.files[ARM] = ("text/html", b"<!doctype html><title>Please log in</title>")
    url = f"http://downloads.example/{ARM}"
    message = refused(says="Found text/html at", bundle_url=url, bundle_sha256="0" * 64)
    assert f"by the proxy {web.address}" in message and "hidden" not in message
    assert "login page" in message
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in kept if path.name != ".lock"] == [X86], "nothing else is kept"


def test_what_comes_with_another_hash_is_refused(web: Web) -> None:
    web.files[X86] = ("application/gzip", BUNDLE)
    refused(says=f"Found SHA-256 {SHA256} at", bundle_url=web.url(X86), bundle_sha256="0" * 64)
    refused(says="404", bundle_url=web.url("missing.tar.gz"), bundle_sha256=SHA256)
    refused(says="refused", bundle_url="http://127.0.0.1:9/x.tar.gz", bundle_sha256=SHA256)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for gpg with a key; `keys.gpg` in it is the keyring, `other.gpg` an empty one."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
    make = [*gpg, "--quick-generate-key", "signer@throughline.example", "ed25519", "sign", "never"]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run([*gpg, "--output", str(home / "keys.gpg"), "--export"], check=True)
    (home / "other.gpg").touch()
    yield home
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


def sign(home: Path, folder: Path, text: str) -> None:
    (folder / "SHA256SUMS").write_text(text)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--yes", "--armor", "--detach-sign"]
    subprocess.run([*gpg, str(folder / "SHA256SUMS")], check=True, capture_output=True)


def test_a_signed_bundle_is_taken_and_no_other(signer: Path, tmp_path: Path) -> None:
    path, keyring = tmp_path / X86, str(signer / "keys.gpg")
    path.write_bytes(BUNDLE)
    refused(says="is unsigned", bundle=str(path), bundle_keyring=keyring)
    sign(signer, tmp_path, f"{SHA256}  {X86}\n")
    assert find(bundle=str(path), bundle_keyring=keyring).sha256 == SHA256
    other = str(signer / "other.gpg")
    refused(says="without a good signature", bundle=str(path), bundle_keyring=other)
    path.write_bytes(BUNDLE + b"damage")
    refused(says=f"required {SHA256}", bundle=str(path), bundle_keyring=keyring)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {X86}\n")
    refused(says="without a good signature", bundle=str(path), bundle_keyring=keyring)
    sign(signer, tmp_path, f"{SHA256}  {ARM}\n")
    refused(says=f"Found no {X86}", bundle=str(path), bundle_keyring=keyring)


def test_the_signed_list_beside_an_address_gives_the_hash(
    signer: Path, tmp_path: Path, web: Web
) -> None:
    sign(signer, tmp_path, f"{SHA256}  {X86}\n")
    web.files[X86] = ("application/gzip", BUNDLE)
    for name in ("SHA256SUMS", "SHA256SUMS.asc"):
        web.files[name] = ("text/plain", (tmp_path / name).read_bytes())
    found = find(bundle_url=web.url(X86), bundle_keyring=str(signer / "keys.gpg"))
    assert found.path.read_bytes() == BUNDLE


def test_a_controller_that_cannot_hold_the_bundle_says_so(
    web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the action, whose task fails, instead of a traceback."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    options = {"bundle_url": web.url(X86), "bundle_sha256": SHA256}
    task = SimpleNamespace(args=options, async_val=0, check_mode=False, diff=False)
    action = plugin("action.throughline_release").ActionModule(
        task, MagicMock(), SimpleNamespace(), None, None, None
    )
    with pytest.raises(AnsibleError, match=str(tmp_path / "file")):
        action.run(task_vars={})
