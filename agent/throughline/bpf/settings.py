"""What the programs are told while they run: the one entry of the map `tl_settings`."""

from __future__ import annotations

from dataclasses import dataclass

from throughline.bpf import abi
from throughline.config.model import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """What the programs are told; see struct tl_settings in bpf/core/abi.h."""

    sampler: abi.Sampler
    ratio: float
    parent_based: bool
    trace_unlisted: bool
    packets: bool = False  # read contexts from TCP options of peers
    limits: bool = True  # leave requests alone that our lines would carry over a usual limit
    ticks: bool = True  # ends of an event loop's ticks are seen

    @classmethod
    def of(cls, config: Config, *, trace_unlisted: bool) -> Settings:
        """What an operator has configured: the sampler by its standard name."""
        name = config.sampling.sampler
        root = name.removeprefix("parentbased_")
        return cls(
            sampler=abi.Sampler[{"traceidratio": "RATIO"}.get(root, root.upper())],
            ratio=config.sampling.arg,
            parent_based=name.startswith("parentbased_"),
            trace_unlisted=trace_unlisted,
            # at once, so that what an earlier run has read goes on being read
            packets="propagation.packets" in config.switches and bool(config.propagation.peers),
            limits=config.propagation.limits,
        )

    def pack(self) -> bytes:
        bound = round(self.ratio * 2**64)
        settings = abi.Settings(
            ratio_bound=min(bound, 2**64 - 1),
            sampler=self.sampler,
            parent_based=self.parent_based,
            trace_unlisted=self.trace_unlisted,
            packets=self.packets,
            ticks=self.ticks,
            limits=self.limits,
        )
        return abi.SETTINGS.pack(*settings)
