"""The worked example of the documentation works as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import elffile
from tests.fixtures.paths import CHECKOUT
from tests.unit.probes import example_provider
from tests.unit.probes.example_provider import GnuTls
from tests.unit.probes.host import FakeProgram, Host
from throughline.probes.provider import Answer, Found, Provider
from throughline.probes.site import Site

PAGE = CHECKOUT / "docs/developer/providers.md"
REAL = Path("/usr/lib/x86_64-linux-gnu/libgnutls.so.30")
PROGRAMS = ("tl_gnutls_recv", "tl_gnutls_has_recv", "tl_gnutls_send", "tl_gnutls_has_sent")
LIBRARY = elffile.build(
    {"gnutls_record_send": elffile.PUSH, "gnutls_record_recv": elffile.ENDBR64 + elffile.PUSH}
)


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = GnuTls()
    yield made
    made.close()


def find(provider: Provider, path: Path) -> Found | Answer:
    with path.open("rb") as file:
        return provider.find(file.fileno())


def test_it_finds_its_functions(provider: Provider, tmp_path: Path) -> None:
    path = tmp_path / "libgnutls.so"
    path.write_bytes(LIBRARY)
    send, receive = elffile.TEXT_OFFSET, elffile.TEXT_OFFSET + elffile.APART
    assert find(provider, path) == Found(
        (
            Site("tl_gnutls_recv", receive + len(elffile.ENDBR64)),
            Site("tl_gnutls_has_recv", receive + len(elffile.ENDBR64), returns=True),
            Site("tl_gnutls_send", send),
            Site("tl_gnutls_has_sent", send, returns=True),
        )
    )


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", elffile.build(elffile.libssl())])
def test_other_files_are_not_its_own(provider: Provider, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert find(provider, path) is Answer.NOT_MINE


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_the_library_of_this_machine(provider: Provider) -> None:
    found = find(provider, REAL)
    assert isinstance(found, Found)
    assert [site.program for site in found.sites] == list(PROGRAMS)


def test_its_files_are_probed_beside_those_of_others(host: Host, provider: Provider) -> None:
    host.files._providers = (*host.files._providers, provider)
    host.programs |= {name: FakeProgram(name) for name in PROGRAMS}
    gnutls, openssl = host.file("libgnutls.so", LIBRARY), host.file("libssl.so")
    host.process(10, gnutls, openssl)
    host.follow()
    assert [file.path for file in host.files.attached if provider.name in file.sites] == [
        str(gnutls)
    ]
    assert len(host.links) == 4 + 5


def test_the_documentation_quotes_it() -> None:
    quoted = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert quoted == Path(example_provider.__file__).read_text(encoding="utf-8")
