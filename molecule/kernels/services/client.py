"""The shop's client, on the VM. Prints one JSON object with its requests and their answers.

client.py carts PREFIX SPANS    23 requests, and the exports until SPANS more spans are sent
client.py local PREFIX SPANS    23 requests through nginx and a Unix socket, likewise
client.py held PREFIX SPANS     23 requests to shop-held on one connection, likewise
client.py bytes SIZE            a body of SIZE random bytes through the chain and back
client.py go1|go2 FIRST SPANS   one request, with the id FIRST, and then 23 with those that follow
                                through three Go services, likewise; the first of these calls the
                                second in HTTP/1.1 or HTTP/2
"""

import concurrent.futures
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REQUESTS = 23
WEB = "127.0.0.1:8000"
HELD = "127.0.0.1:8004"
RECEIVER = "127.0.0.1:4318"
FRONTS = {"go1": "10.79.0.11:8002", "go2": "10.79.0.11:8001"}
PROGRAMS = {"/opt/shop/go-front", "/opt/shop/go-middle", "/opt/shop/go-back"}
STATUS = Path("/run/throughline/status.json")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACESTATE = "shop=1"
SPAN_SECONDS = 30.0
SURPLUS_SECONDS = 1.5
FOLLOWED_SECONDS = 120.0
AT_ONCE = 8


def held(prefix: str, spans: int) -> dict[str, object]:
    """Requests to shop-held, whose own connection may be older than the agent."""
    known, before = len(exports(0)), counts()
    connection = http.client.HTTPConnection(HELD, timeout=30)
    found = []
    for number in range(1, REQUESTS + 1):
        cart = f"{prefix}{number:03d}"
        connection.request("GET", f"/held/{cart}")
        received = json.loads(connection.getresponse().read())["received"]
        found.append({"cart": cart, "traceparent": "", "tracestate": "", "received": received})
    connection.close()
    return outcome(found, known, before, spans)


def local(prefix: str, spans: int) -> dict[str, object]:
    """Requests to shop-prices behind nginx, some at once."""
    known, before = len(exports(0)), counts()

    def ask(cart: str) -> dict[str, object]:
        connection = http.client.HTTPConnection(WEB, timeout=30)
        connection.request("GET", f"/prices/{cart}")
        received = json.loads(connection.getresponse().read())["received"]
        connection.close()
        return {"cart": cart, "traceparent": "", "tracestate": "", "received": received}

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(ask, [f"{prefix}{number:03d}" for number in range(REQUESTS)]))
    return outcome(found, known, before, spans)


def get(carts: list[str], headers: dict[str, str]) -> list[dict[str, object]]:
    """Asks for carts one after the other on one connection."""
    connection = http.client.HTTPConnection(WEB, timeout=30)
    found = []
    for cart in carts:
        connection.request("GET", f"/cart/{cart}", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"client: cart {cart}: HTTP {answer.status}")
        found.append(
            {
                "cart": cart,
                "traceparent": headers.get("traceparent", ""),
                "tracestate": headers.get("tracestate", ""),
                "received": json.loads(body)["stock"]["prices"]["received"],
            }
        )
    connection.close()
    return found


def exports(since: int) -> list[str]:
    """The export bodies from number `since` on, in base64."""
    connection = http.client.HTTPConnection(RECEIVER, timeout=10)
    connection.request("GET", f"/v1/traces?since={since}")
    bodies: list[str] = json.load(connection.getresponse())
    connection.close()
    return bodies


def status() -> dict[str, Any]:
    """The agent's status, {} without an agent."""
    try:
        found: dict[str, Any] = json.loads(STATUS.read_text())
    except (OSError, ValueError):
        return {}
    return found


def counts() -> tuple[int, int]:
    """The numbers of spans that the agent has sent, and of requests that it could not trace."""
    found = status()
    sent = found.get("export", {}).get("exported_spans", 0)
    return int(sent), int(found.get("counters", {}).get("lost_early", 0))


def carts(prefix: str, spans: int) -> dict[str, object]:
    """Requests on one connection, all at once, and one with a context of its own."""
    known, before = len(exports(0)), counts()
    half = REQUESTS // 2
    names = [f"{prefix}{number:03d}" for number in range(1, REQUESTS + 1)]
    found = get(names[:half], {})
    with concurrent.futures.ThreadPoolExecutor(half) as pool:
        for answers in pool.map(lambda name: get([name], {}), names[half : 2 * half]):
            found += answers
    found += get(names[2 * half :], {"traceparent": TRACEPARENT, "tracestate": TRACESTATE})
    return outcome(found, known, before, spans)


def counters_of_go() -> dict[str, int]:
    """The counters of the groups go and go_write."""
    found = status().get("counters", {})
    return {name: int(count) for name, count in found.items() if name.startswith("go_")}


def wait_followed() -> None:
    """Waits until the agent traces the three programs, or does not trace Go programs."""
    deadline = time.monotonic() + FOLLOWED_SECONDS
    while time.monotonic() < deadline:
        go = status().get("go")
        if go is None or {file["path"] for file in go["files"]} >= PROGRAMS:
            return
        time.sleep(0.5)
    raise SystemExit(f"client: not followed after {FOLLOWED_SECONDS:.0f} s: {status()['go']}")


def ask_go(front: str, numbers: range) -> list[dict[str, object]]:
    """The answers to requests by curl, several at once, on the network of the Go services."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"http://{FRONTS[front]}/context/unary/answer/[{numbers[0]}-{numbers[-1]}]"
        words = ["--parallel", "--parallel-max", str(AT_ONCE), "--max-time", "60", "--fail"]
        words += ["--silent", "--show-error", "--output", f"{folder}/#1", url]
        subprocess.run(["nsenter", "--net=/run/netns/go-lan", "curl", *words], check=True)
        return [json.loads(Path(folder, str(number)).read_text()) for number in numbers]


def load_go(front: str, numbers: range, spans: int) -> dict[str, object]:
    """These requests, their exports, and the growth of the counters."""
    known, before, counted = len(exports(0)), counts(), counters_of_go()
    result = outcome(ask_go(front, numbers), known, before, spans)
    now = counters_of_go()
    grown = {name: count - counted.get(name, 0) for name, count in now.items()}
    return result | {"counters": {name: count for name, count in grown.items() if count}}


def go(front: str, first: int, spans: int) -> dict[str, object]:
    """Requests to the Go services, on `opened` connections: docs/operator/go.md."""
    wait_followed()
    opened = load_go(front, range(first, first + 1), spans // REQUESTS)
    return load_go(front, range(first + 1, first + 1 + REQUESTS), spans) | {"opened": opened}


def outcome(
    requests: list[dict[str, object]], known: int, before: tuple[int, int], spans: int
) -> dict[str, object]:
    """The requests, and the exports after the first `known`, once `spans` more spans are sent."""
    deadline = time.monotonic() + SPAN_SECONDS
    while spans and counts()[0] - before[0] < spans and time.monotonic() < deadline:
        time.sleep(0.25)
    time.sleep(SURPLUS_SECONDS)  # time for a span too many
    sent, lost = (now - then for now, then in zip(counts(), before, strict=True))
    return {"requests": requests, "exports": exports(known), "exported": sent, "lost": lost}


def echo(size: int) -> dict[str, object]:
    """The SHA-256 of the body as sent, as the last hop got it, and as it came back."""
    sent = os.urandom(size)
    connection = http.client.HTTPConnection(WEB, timeout=120)
    connection.request("POST", "/bytes/1", sent)
    answer = connection.getresponse()
    back = answer.read()
    return {
        "status": answer.status,
        "sent": hashlib.sha256(sent).hexdigest(),
        "arrived": answer.headers.get("X-Sha256"),
        "back": hashlib.sha256(back).hexdigest(),
        "traceparents": answer.headers.get("X-Traceparents"),
        "bytes": len(back),
    }


if sys.argv[1] in ("carts", "held", "local"):
    ask = {"carts": carts, "held": held, "local": local}[sys.argv[1]]
    print(json.dumps(ask(sys.argv[2], int(sys.argv[3]))))
elif sys.argv[1] in FRONTS:
    print(json.dumps(go(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
else:
    print(json.dumps(echo(int(sys.argv[2]))))
