"""After uninstall.yml the host is as it was before throughline."""

from __future__ import annotations

from typing import Any

import pytest
from machine import Machine
from test_go import check_answers

pytestmark = [pytest.mark.usefixtures("accepted"), pytest.mark.timeout(900)]


def test_nothing_is_left(machine: Machine, seen: dict[str, Any]) -> None:
    bare, before = machine.bare(), machine.look()
    assert before["bpf"] is not None, "bpftool is not installed: this could not see what is left"
    ours = {
        kind: [one for one in before["bpf"][kind] if one not in bare["bpf"][kind]]
        for kind in ("prog", "map", "link")
    }
    seen["before"] = {kind: len(found) for kind, found in ours.items()}
    assert all(ours.values()), f"this would not see what is left: {seen['before']}"
    played = machine.play("uninstall")
    assert played.code == 0, played.output[-3000:]
    after = machine.look()
    assert after["files"] == []
    assert after["users"] == bare["users"]
    assert [mount for mount in after["mounts"] if "throughline" in mount[0]] == []
    for kind in ("prog", "map", "link"):
        left = [one for one in after["bpf"][kind] if one not in bare["bpf"][kind]]
        assert left == [], kind
    assert after["agent"]["unit"]["ActiveState"] == "inactive"
    assert after["running"] == "running", after["failed"]


def test_traffic_is_as_it_was(machine: Machine) -> None:
    sent = machine.send("untraced", spans=0)
    assert len(sent.requests) == 23
    assert [one.cart for one in sent.requests if "traceparent" in one.received] == []
    assert (sent.spans, sent.others) == ([], [])
    go = machine.send_to_go("2", spans=0)
    check_answers(go)
    assert go.found.wire == {"none": 2 * 23}
    assert (go.found.spans, go.others) == ([], [])
