"""The agent starts in the middle of an exchange: the next request of the connection has a span.

The first bytes that it sees are an answer, or look like the start of a request.
"""

from __future__ import annotations

import ssl
from contextlib import ExitStack

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.operated import Operated
from tests.fixtures.outside import Outside
from tests.fixtures.sockets import accept, connect, listen, read_block, read_exactly
from tests.fixtures.spans import Span
from tests.fixtures.tls_pair import exchange, secured, wait_probed
from tests.fixtures.wire import OK, head

COUNT = 5
#: the bytes of the answer that leave before the agent starts, and those that leave after
ANSWERS = {
    "answer": (b"", OK),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"OK"),
    "request-like": (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n", b"GET / of a body"),
    "capitals": (b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n", b"ABCD" * 7500),
}


def kinds(spans: list[Span], path: str) -> list[tuple[str, str, object]]:
    return sorted(
        (span.kind, span.path, span.attributes.get("http.response.status_code"))
        for span in spans
        if span.path.startswith(path)
    )


def expected(kind: str, path: str) -> list[tuple[str, str, object]]:
    return [(kind, f"{path}{number}", 200) for number in range(COUNT)]


@pytest.mark.parametrize("headers", ["auto", "off"])
@pytest.mark.parametrize("name", ANSWERS)
def test_plaintext(name: str, headers: str) -> None:
    before, after = ANSWERS[name]
    with (
        Outside() as outside,
        Operated({"propagation": {"headers": headers}}, start=False) as traced,
        ExitStack() as stack,
    ):
        # the agent is elsewhere: processes in its cgroup are not traced
        with traced.inside("service"):
            front, back = stack.enter_context(listen()), stack.enter_context(outside.listen())
            client = stack.enter_context(outside.connect(front))
            server = stack.enter_context(accept(front))
            near = stack.enter_context(connect(back, nodelay=True))
            far = stack.enter_context(accept(back))
        for asks, answers in ((client, server), (near, far)):
            asks.sendall(head(target="/first"))
            read_block(answers)
            answers.sendall(before)
            read_exactly(asks, len(before))
        traced.start_agent()
        traced.wait_cgroups_known()
        for asks, answers in ((client, server), (near, far)):
            answers.sendall(after)
            read_exactly(asks, len(after))
        for number in range(COUNT):
            exchange(client, server, head(target=f"/served/{number}"), OK)
            near.sendall(head(target=f"/called/{number}"))
            read_block(far)
            far.sendall(OK)
            read_exactly(near, len(OK))
        spans = traced.wait_spans(2 * COUNT, seconds=5)
        assert kinds(spans, "/served/") == expected("SERVER", "/served/")
        assert kinds(spans, "/called/") == expected("CLIENT", "/called/")
        assert len(spans) == 2 * COUNT, kinds(spans, "")


@pytest.mark.parametrize("name", ["answer", "body", "capitals"])
def test_tls_after_a_reload(traced: Operated, name: str) -> None:
    before, after = ANSWERS[name]
    certificate = make_certificate(traced.directory)
    with traced.inside("service"):
        ends: tuple[ssl.SSLSocket, ssl.SSLSocket]
        with secured(certificate) as ends:
            client, server = ends
            wait_probed(traced)
            for number in range(COUNT):
                exchange(client, server, head(target=f"/before/{number}"), OK)
            client.sendall(head(target="/middle"))
            server.recv(65536)
            server.sendall(before)
            traced.reload()
            wait_probed(traced)
            server.sendall(after)
            wanted = before + after
            while wanted:
                wanted = wanted[len(client.recv(len(wanted))) :]
            for number in range(COUNT):
                exchange(client, server, head(target=f"/after/{number}"), OK)
            spans = traced.wait_spans(4 * COUNT, seconds=5)
    both = sorted(expected("SERVER", "/after/") + expected("CLIENT", "/after/"))
    assert kinds(spans, "/before/") == sorted(
        expected("SERVER", "/before/") + expected("CLIENT", "/before/")
    )
    assert kinds(spans, "/after/") == both
