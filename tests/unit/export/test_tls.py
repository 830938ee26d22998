"""Export over TLS with client certificates, against servers that demand them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

from tests.fixtures.otlp_receivers import GrpcReceiver, HttpReceiver
from tests.fixtures.records import request
from throughline.config.model import DEFAULT_PATH, load
from throughline.export import otlp
from throughline.export.outcome import Outcome, Verdict

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make certificates"
)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server and client certificates which it signed."""
    where = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=where, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    key_usage = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(*new, "-x509", "-subj", "/CN=ca", *key_usage, "-keyout", "ca.key", "-out", "ca.pem")
    (where / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-extfile", "san", "-out", f"{name}.pem"),
        )
    return where


def receive(protocol: str, pki: Path) -> AbstractContextManager[HttpReceiver | GrpcReceiver]:
    key, certificate = pki / "server.key", pki / "server.pem"
    if protocol == "grpc":
        pair = (key.read_bytes(), certificate.read_bytes())
        root = (pki / "ca.pem").read_bytes()
        return GrpcReceiver(tls=grpc.ssl_server_credentials([pair], root, require_client_auth=True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(pki / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return HttpReceiver(tls=context)


def send(endpoint: str, protocol: str, **files: Path) -> Outcome:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3000",
        **{f"OTEL_EXPORTER_OTLP_{name.upper()}": str(path) for name, path in files.items()},
    }
    target = load(DEFAULT_PATH, environment=variables).export.traces
    sender = otlp.span_sender(target)
    outcome = sender.send(request())
    sender.close()
    return outcome


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_mutual_tls(protocol: str, pki: Path) -> None:
    with receive(protocol, pki) as receiver:
        outcome = send(
            receiver.endpoint,
            protocol,
            certificate=pki / "ca.pem",
            client_certificate=pki / "client.pem",
            client_key=pki / "client.key",
        )
        assert outcome.verdict is Verdict.ACCEPTED, outcome
        assert len(receiver.spans()) == 1


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_unknown_server_is_not_trusted(protocol: str, pki: Path) -> None:
    with receive(protocol, pki) as receiver:
        outcome = send(
            receiver.endpoint,
            protocol,
            certificate=pki / "client.pem",
            client_certificate=pki / "client.pem",
            client_key=pki / "client.key",
        )
        assert outcome.verdict is Verdict.RETRY
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.detail.upper().replace(" ", "_")
        assert receiver.spans() == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_without_a_client_certificate(protocol: str, pki: Path) -> None:
    with receive(protocol, pki) as receiver:
        outcome = send(receiver.endpoint, protocol, certificate=pki / "ca.pem")
        assert outcome.verdict is Verdict.RETRY
        assert receiver.spans() == []
