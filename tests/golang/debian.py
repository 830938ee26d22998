"""Go programs that we did not write: Debian's packages, unpacked but not installed.

Each function starts services in cgroups of their own, on loopback, and they end with `traced`,
which may run without an agent too (`Traced(start=False)`).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernel.traced import Traced, free_port, wait_port
from tests.vms import cache

PACKAGES = ("caddy", "etcd-client", "etcd-server", "prometheus", "prometheus-node-exporter")


def unpacked() -> Path:
    """The folder that the packages are unpacked in, downloaded where it is missing."""
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        apt = ["apt-get", "--quiet=2"]
        command = [*apt, "download", *PACKAGES]
        if subprocess.run(command, check=False, cwd=folder, capture_output=True).returncode:
            subprocess.run([*apt, "update"], check=True, capture_output=True)
            subprocess.run(command, check=True, cwd=folder, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
            package.write_bytes(b"")  # its name, with its version, is all that is still needed

    return cache.make(cache.directory() / "golang" / f"debian-{digest}", build, topic="golang")


def versions() -> dict[str, str]:
    """Debian's version of each package."""
    names = (file.name.split("_") for file in unpacked().glob("*.deb"))
    return {name: urllib.parse.unquote(version) for name, version, *_ in names}


def program(name: str) -> str:
    return str(unpacked() / "usr/bin" / name)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """`prometheus` scrapes `node-exporter`."""

    port: int
    exporter: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}/api/v1/query?{query}", timeout=10
        ) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def wait_ready(self) -> None:
        """Waits for its storage: it listens before, and refuses until then."""
        url = f"http://127.0.0.1:{self.port}/-/ready"
        _retry(lambda: urllib.request.urlopen(url, timeout=10).close())

    def wait_scrapes(self, count: int, *, seconds: float = 30.0) -> int:
        """Waits until so many scrapes have succeeded; returns how many have."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.query('sum_over_time(up{job="node"}[5m])')
            total = int(found[0]["value"][1]) if found else 0
            if total >= count or time.monotonic() > deadline:
                return total
            time.sleep(0.2)


def start_prometheus(
    traced: Traced, *, certificate: Path | None = None, seconds: int = 1
) -> Prometheus:
    """It scrapes each so many seconds, and takes no longer for one.

    Over HTTPS where there is a certificate (key and certificate in one file).
    """
    directory = traced.directory / "prometheus"
    directory.mkdir()
    port, exporter = free_port(), free_port()
    file = directory / "prometheus.yml"
    scraped: dict[str, Any] = {
        "job_name": "node",
        "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}],
    }
    command = [program("prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{exporter}"]
    if certificate:
        web = directory / "web.yml"
        pair = {"cert_file": str(certificate), "key_file": str(certificate)}
        web.write_text(json.dumps({"tls_server_config": pair}))
        command.append(f"--web.config.file={web}")
        scraped |= {"scheme": "https", "tls_config": {"ca_file": str(certificate)}}
    settings = {"global": {"scrape_interval": f"{seconds}s"}, "scrape_configs": [scraped]}
    file.write_text(json.dumps(settings))  # which is YAML
    _start(traced, "node-exporter", command, exporter)
    _start(
        traced,
        "prometheus",
        [
            program("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            # Debian's are elsewhere on a machine where it is not installed
            f"--web.console.templates={directory}",
            f"--web.console.libraries={directory}",
        ],
        port,
    )
    prometheus = Prometheus(port, exporter)
    prometheus.wait_ready()
    return prometheus


_CADDY = """\
{{
    admin off
    skip_install_trust
    auto_https disable_redirects
    default_sni 127.0.0.1
    storage file_system {directory}/storage
}}
http://127.0.0.1:{port} {{
    reverse_proxy {onward}
}}
https://127.0.0.1:{secure} {{
    tls internal
    reverse_proxy {onward}
}}
"""


@dataclass(frozen=True, slots=True)
class Caddy:
    """`caddy` passes requests on; `root` is the certificate that its own are signed with."""

    port: int
    secure: int  # the port with TLS, which offers HTTP/2
    root: Path


def start_caddy(traced: Traced, *, onward: int, certificate: Path | None = None) -> Caddy:
    """Before the service at port `onward`, which it calls by HTTPS where that has a certificate."""
    directory = traced.directory / "caddy"
    directory.mkdir()
    port, secure = free_port(), free_port()
    file = directory / "Caddyfile"
    to = f"127.0.0.1:{onward}"
    if certificate:
        trust = f"transport http {{\ntls_trusted_ca_certs {certificate}\n}}"
        to = f"https://{to} {{\n{trust}\n}}"
    file.write_text(_CADDY.format(directory=directory, port=port, secure=secure, onward=to))
    command = [program("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    _start(traced, "caddy", command, secure, HOME=str(directory))
    wait_port(port)
    root = directory / "storage/pki/authorities/local/root.crt"
    _wait_certificate(secure, root)
    if traced.agent is not None:
        traced.wait_followed(Path(program("caddy")))
    return Caddy(port, secure, root)


def _wait_certificate(port: int, root: Path) -> None:
    """Waits until a service answers with a certificate: it listens before it has made one."""

    def greet() -> None:
        trust = ssl.create_default_context(cafile=str(root))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            trust.wrap_socket(plain, server_hostname="127.0.0.1").close()

    _retry(greet)


@dataclass(frozen=True, slots=True)
class Etcd:
    """`etcd`, and `etcdctl` to ask it."""

    traced: Traced
    endpoint: str
    certificate: Path | None

    def ctl(self, *arguments: str, seconds: float = 60.0) -> str:
        """What etcdctl prints, which runs in a cgroup of its own."""
        process = self._ctl(*arguments)
        out, err = process.communicate(timeout=seconds)
        assert not process.returncode, err.decode()
        return out.decode()

    @contextmanager
    def watching(self, key: str) -> Iterator[None]:
        """While one waits for a key to change."""
        process = self._ctl("watch", key)
        try:
            yield
        finally:
            process.kill()
            process.communicate()

    def _ctl(self, *arguments: str) -> subprocess.Popen[bytes]:
        trust = []
        if self.certificate:  # it takes no file with a key in it
            trust = [f"--cacert={self.certificate.with_name('certificate.pem')}"]
        return self.traced.spawn(
            "etcdctl",
            [program("etcdctl"), f"--endpoints={self.endpoint}", *trust, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def start_etcd(traced: Traced, *, certificate: Path | None = None) -> Etcd:
    """With TLS where there is a certificate (key and certificate in one file)."""
    port, peers = free_port(), free_port()
    scheme = "https" if certificate else "http"
    endpoint, peer = f"{scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    tls = [f"--cert-file={certificate}", f"--key-file={certificate}"] if certificate else []
    command = [
        program("etcd"),
        f"--data-dir={traced.directory / 'etcd'}",
        *(f"--listen-client-urls={endpoint}", f"--advertise-client-urls={endpoint}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        f"--initial-cluster=default={peer}",
        *tls,
    ]
    _start(traced, "etcd", command, port)
    return Etcd(traced, endpoint, certificate)


def _retry(what: Callable[[], None], *, seconds: float = 60.0) -> None:
    """Does something until it raises no OSError, of which urllib's and ssl's are, or time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return what()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _start(traced: Traced, service: str, command: list[str], port: int, **more: str) -> None:
    """Starts a service, which says what goes wrong in DIRECTORY/SERVICE.stderr, and waits."""
    with (traced.directory / f"{service}.stderr").open("wb") as log:
        traced.spawn(service, command, stdout=log, stderr=log, env={**os.environ, **more})
    wait_port(port)
