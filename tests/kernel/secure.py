"""HTTPS services of this machine's own parts, and the certificate that they show."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.traced import START_SECONDS, Traced, free_port, wait_port

SERVICES = Path(__file__).with_name("services")

_NGINX = """\
daemon off;
worker_processes 2;
error_log {directory}/nginx.log;
pid {directory}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 100000;
    client_max_body_size 64m;
    client_body_temp_path {directory}/t1;
    proxy_temp_path {directory}/t2;
    fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4;
    scgi_temp_path {directory}/t5;
    server {{
        listen 127.0.0.1:{port} ssl{http2};
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:1m;
        location /files/ {{ alias {directory}/files/; }}
        location / {{ proxy_pass https://127.0.0.1:{onward}; }}
    }}
}}
"""


def make_certificate(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that trusts itself."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    name = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", *kind, *name, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


class Secure:
    """Starts HTTPS services in cgroups of their own, all with one certificate."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        traced.directory.chmod(0o755)  # workers of nginx are another user
        self.certificate = make_certificate(traced.directory)
        self._environment = {**os.environ, "CERTIFICATE": str(self.certificate)}

    def wait_found(self, file: str, processes: int = 1, *, seconds: float = START_SECONDS) -> None:
        """Waits until the agent has found a file in that many processes: services start at will."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self._traced.status() or {}
            for found in (status.get("tls") or {}).get("files", []):
                if file in found["path"] and found["processes"] >= processes:
                    return
            time.sleep(0.05)
        raise TimeoutError(
            f"{file} was not found in {processes} processes: {self._traced.status()}"
        )

    def trust(self) -> ssl.SSLContext:
        """What a client needs."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def python(self, service: str, *, onward: int | None = None) -> int:
        """A thread per connection. Returns the port, as all of them."""
        return self._run(service, [sys.executable, str(SERVICES / "threaded.py")], onward)

    def asyncio(self, service: str) -> int:
        return self._run(service, [sys.executable, str(SERVICES / "tls_aio.py")], None)

    def node(self, service: str, *, onward: int | None = None, cache: int | None = None) -> int:
        """With `cache`, a port that answers lines, it asks there before it calls on."""
        if cache is not None:
            self._environment["CACHE"] = str(cache)
        try:
            return self._run(service, ["node", str(SERVICES / "tls.js")], onward)
        finally:
            self._environment.pop("CACHE", None)

    def nginx(
        self, service: str, *, onward: int = 9, http2: bool = False, prefix: Sequence[str] = ()
    ) -> int:
        """A proxy, and what is in `files` below DIRECTORY/SERVICE as /files/.

        `prefix` is a command that runs it.
        """
        port = free_port()
        directory = self._traced.directory / service
        (directory / "files").mkdir(parents=True, exist_ok=True)
        file = directory / "nginx.conf"
        file.write_text(
            _NGINX.format(
                directory=directory,
                port=port,
                onward=onward,
                certificate=self.certificate,
                http2=" http2" if http2 else "",
            )
        )
        log = str(directory / "nginx.log")
        self._traced.spawn(service, [*prefix, "nginx", "-e", log, "-c", str(file)])
        wait_port(port)
        return port

    def _run(self, service: str, command: list[str], onward: int | None) -> int:
        port = free_port()
        arguments = [str(port)] if onward is None else [str(port), str(onward)]
        self._traced.spawn(service, [*command, *arguments], env=self._environment)
        wait_port(port)
        return port
