"""The settings that the BPF programs read while they run: the one entry of `tl_settings`."""

from __future__ import annotations

from dataclasses import dataclass

from throughline.bpf import abi
from throughline.config.model import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """struct tl_settings of bpf/core/abi.h, in the terms of the configuration."""

    sampler: abi.Sampler
    ratio: float
    parent_based: bool
    trace_unlisted: bool
    packets: bool = False  # contexts are read from TCP options of peers
    limits: bool = True  # a request that our headers would push over a usual limit is left alone
    likely: bool = False  # likely evidence for a parent is enough
    updates: bool = True  # a traceparent that is passed on names the span of the call
    ticks: bool = True  # the programs see where an event loop's tick ends
    node: bool = False  # processes of Node.js may tell where they show a request
    sends: bool = False  # tl_sent sees what threads send
    complete_ns: int = 0  # CLOCK_MONOTONIC: before, reads may be missed, as programs take over

    @classmethod
    def of(cls, config: Config, *, trace_unlisted: bool) -> Settings:
        """The settings of a configuration."""
        name = config.sampling.sampler
        root = name.removeprefix("parentbased_")
        return cls(
            sampler=abi.Sampler[{"traceidratio": "RATIO"}.get(root, root.upper())],
            ratio=config.sampling.arg,
            parent_based=name.startswith("parentbased_"),
            trace_unlisted=trace_unlisted,
            # From the start: contexts that an earlier run reads are read without a gap.
            packets="propagation.packets" in config.switches and bool(config.propagation.peers),
            node="instrumentation.node" in config.switches,
            limits=config.propagation.limits,
            likely=config.propagation.parents == "likely",
            updates=config.propagation.passed_on == "update",
        )

    def pack(self) -> bytes:
        bound = round(self.ratio * 2**64)
        settings = abi.Settings(
            ratio_bound=min(bound, 2**64 - 1),
            complete_ns=self.complete_ns,
            sampler=self.sampler,
            parent_based=self.parent_based,
            trace_unlisted=self.trace_unlisted,
            packets=self.packets,
            ticks=self.ticks,
            limits=self.limits,
            parents=abi.Parents.LIKELY if self.likely else abi.Parents.PROVEN,
            updates=self.updates,
            node=self.node,
            sends=self.sends,
        )
        return abi.SETTINGS.pack(*settings)
