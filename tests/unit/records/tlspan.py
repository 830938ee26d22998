"""Records as the kernel writes them."""

from __future__ import annotations

from throughline.bpf import abi


def raw(cgroup_id: int, **texts: bytes) -> bytes:
    """A record of the kernel: struct tl_span."""
    values = dict.fromkeys(abi.Span._fields, 0) | {
        "kind": abi.Kind.SERVER,
        "cgroup_id": cgroup_id,
        "trace_id": bytes(range(16)),
        "span_id": bytes(range(8)),
        "parent_span_id": bytes(8),
        "local_addr": bytes(16),
        "peer_addr": bytes(16),
        "method": b"GET",
        "method_len": 3,
        "host": b"",
        "target": b"/",
        "target_len": 1,
        "path": b"",
        "tracestate": b"",
        "status": 200,
    }
    for name, text in texts.items():
        values[name] = text
        values[f"{name}_len"] = len(text)
    return abi.SPAN.pack(*(values[name] for name in abi.Span._fields))
