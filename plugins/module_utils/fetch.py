# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A file at an address, downloaded and compared with its SHA-256, on the controller or a host."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ansible.module_utils import urls

SECONDS = 60  # without a byte
MAX_BYTES = 200_000_000
GZIP = b"\x1f\x8b"
# Options of each module whose action finds the bundle (plugin_utils/source.py).
BUNDLE_OPTIONS = {
    "bundle": {"type": "path"},
    "bundle_url": {"type": "str"},
    "bundle_sha256": {"type": "raw"},
    "bundle_fetched_by": {
        "type": "str",
        "choices": ["controller", "host"],
        "default": "controller",
    },
    "bundle_keyring": {"type": "path"},
}


class FetchError(Exception):
    """The file cannot be had. The message says found, required and remedy."""


def shown(url):
    """A URL for people, without a user, a password and a query, which may be a credential."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def proxy_of(url):
    """The proxy by which a URL is asked, as its variable has it, or None."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    proxy = getproxies().get(parts.scheme)
    return None if not proxy or (host and proxy_bypass(host)) else proxy


def shown_proxy(proxy):
    """A proxy for people: its variable need not have a scheme, and a password may have any sign."""
    scheme = proxy.partition("://")[0] + "://" if "://" in proxy else ""
    return scheme + proxy.rpartition("@")[2].rpartition("://")[2].partition("/")[0]


def way(url):
    """How the URL is asked, for people: with which proxy, if any."""
    proxy = proxy_of(url)
    return f"{shown(url)} (by the proxy {shown_proxy(proxy)})" if proxy else shown(url)


def said(error, url):
    """An error for people. Some of urllib's have a part of the URL, or of the proxy's."""
    text = str(error)
    for address in (url, proxy_of(url) or ""):
        login = address.partition("://")[2] or address
        login = login.rpartition("@")[0] if "@" in login else ""
        for secret in (login, login.partition(":")[2], urlsplit(address).query):
            text = text.replace(secret, "***") if secret else text
    return text


def read(url, limit, *, decompress=True):
    """Yields the content at a URL in blocks, as (block, content type). Raises FetchError."""
    try:
        # Asks the proxy that http_proxy, https_proxy and no_proxy name.
        with urls.open_url(
            url, timeout=SECONDS, http_agent="throughline", decompress=decompress
        ) as answer:
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
            f"Found no answer from {way(url)}: {said(error, url)}. Required the file."
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
            # Some servers say that a .tar.gz is a .tar with Content-Encoding: gzip.
            for block, kind in read(url, MAX_BYTES, decompress=False):
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
