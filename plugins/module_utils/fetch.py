# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A file at an address, downloaded and compared with its SHA-256, on the controller or a host."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ansible.module_utils import urls

SECONDS = 60  # without a byte
MAX_BYTES = 200_000_000
GZIP = b"\x1f\x8b"


class FetchError(Exception):
    """The file cannot be had. The message says found, required and remedy."""


def shown(url):
    """A URL for people, without a user and password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def way(url):
    """How the URL is asked, for people: with which proxy, if any."""
    proxy = getproxies().get(urlsplit(url).scheme)
    return f"{shown(url)} (by the proxy {shown(proxy)})" if proxy else shown(url)


def read(url, limit):
    """Yields the content at a URL in blocks, as (block, content type). Raises FetchError."""
    try:
        # Asks the proxy that http_proxy, https_proxy and no_proxy name.
        with urls.open_url(url, timeout=SECONDS, http_agent="throughline") as answer:
            kind, total = answer.headers.get("content-type", "no content type"), 0
            for block in iter(lambda: answer.read(1 << 20), b""):
                total += len(block)
                if total > limit:
                    raise FetchError(
                        f"Found more than {limit} bytes at {way(url)}, required a bundle."
                        " Remedy: look at throughline_bundle_url."
                    )
                yield block, kind
    except (OSError, ValueError, HTTPException, urls.ConnectionError) as error:
        raise FetchError(
            f"Found no answer from {way(url)}: {error}. Required the file."
            " Remedy: look at throughline_bundle_url and at the proxy variables."
        ) from error


def read_small(url):
    """A small file, such as SHA256SUMS. Raises FetchError."""
    return b"".join(block for block, _kind in read(url, 1 << 20))


def fetch(url, path, *, sha256):
    """Downloads a bundle to `path`, where only one with this SHA-256 comes. Raises FetchError."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    digest, begun = hashlib.sha256(), False
    try:
        with part.open("wb") as file:
            for block, kind in read(url, MAX_BYTES):
                if not begun and not block.startswith(GZIP):
                    raise FetchError(
                        f"Found {kind} at {way(url)}, which begins with {block[:20]!r}. Required a"
                        " bundle (.tar.gz). Remedy: look whether a proxy or a login page answers"
                        " instead."
                    )
                begun = True
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != sha256:
            raise FetchError(
                f"Found SHA-256 {digest.hexdigest()} at {way(url)}, required {sha256}. Remedy: take"
                " throughline_bundle_sha256 from the SHA256SUMS of that release."
            )
        part.replace(path)
    finally:
        if part.exists():
            part.unlink()
