"""OTLP/HTTP with binary protobuf, https://opentelemetry.io/docs/specs/otlp/#otlphttp."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping

import requests
import urllib3

from throughline.config.model import OtlpTarget
from throughline.export import answers
from throughline.export.outcome import Outcome, Sender, Verdict

_MAX_ANSWER = 1 << 16  # bytes that are read of an answer


def sender(target: OtlpTarget, *, headers: Mapping[str, str]) -> Sender:
    """Sends with these headers. A call takes at most the target's timeout, twice at worst."""
    session = requests.Session()
    session.headers.update({**headers, "Content-Type": "application/x-protobuf"})
    if target.compression == "gzip":
        session.headers["Content-Encoding"] = "gzip"
    if target.client_certificate and target.client_key:
        session.cert = (str(target.client_certificate), str(target.client_key))

    def send(body: bytes) -> Outcome:
        if target.compression == "gzip":
            body = gzip.compress(body)
        try:
            return _post_twice(session, target, body)
        except (requests.RequestException, OSError) as error:
            return Outcome(Verdict.RETRY, _reason(error))

    return Sender(send, session.close)


def _post_twice(session: requests.Session, target: OtlpTarget, body: bytes) -> Outcome:
    """Sends again, on a new connection, where the receiver closed a kept one as we wrote."""
    try:
        return _post(session, target, body)
    except requests.ConnectionError as error:
        if error.args and isinstance(error.args[0], urllib3.exceptions.ProtocolError):
            return _post(session, target, body)
        raise


def _post(session: requests.Session, target: OtlpTarget, body: bytes) -> Outcome:
    deadline = time.monotonic() + target.timeout
    with session.post(
        target.endpoint,
        data=body,
        timeout=target.timeout,
        # The configured CA; left out, requests would prefer $REQUESTS_CA_BUNDLE.
        verify=str(target.certificate) if target.certificate else True,
        allow_redirects=False,
        stream=True,
    ) as response:
        answer = b""
        for part in response.iter_content(_MAX_ANSWER):
            answer += part
            if len(answer) > _MAX_ANSWER or time.monotonic() > deadline:
                break  # the connection is not used again
        return answers.of_http(
            response.status_code, response.reason or "", response.headers, answer
        )


def _reason(error: BaseException) -> str:
    """The innermost cause, which is the one that a person can act on."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or seen.__cause__ or seen.__context__
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    strerror = getattr(seen, "strerror", None)
    text = strerror if isinstance(strerror, str) else str(seen)
    return f"{type(seen).__name__}: {text}" if text else type(seen).__name__
