"""What the kernel's verifier walks through: most of the time in which the agent starts."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from throughline.bpf import libbpf, prototypes
from throughline.features.objects import VARIANTS, Objects
from throughline.features.table import GROUPS
from throughline.probes import trials, uprobes

# Instructions, for all programs of a variant. A loop whose turns the verifier walks one by one, or
# a function that it walks for each caller, adds tens of thousands to each program that has it:
# docs/developer/kernel-facts.md.
WALKED_MAX = {"": 716_000, "-legacy": 424_000}
VERIFIED_INSNS = 54  # of struct bpf_prog_info, in words (Linux 5.16)
# some kernels show no Unix sockets; lockdown refuses bpf_probe_write_user
NOT_EVERYWHERE = {"go_write", "restore", "unix"}


@pytest.fixture
def bpffs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tl-") as directory:
        subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


def _prepare(opened: libbpf.Object) -> None:
    uprobes.prepare(opened, trials.find_kind())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_verifier_has_little_to_walk(bpffs: Path, variant: str) -> None:
    objects = Objects(bpffs=bpffs, map_sizes={})
    objects.variant = variant
    objects.pins.mkdir()
    walked = {}
    try:
        for name in dict.fromkeys(n for group in GROUPS.values() for n in group.objects):
            if not objects.has(name):
                continue
            try:
                loaded = objects.load(name, prepare=_prepare)
            except OSError:
                assert name in NOT_EVERYWHERE
                continue
            for program in loaded.programs():
                walked[program.name] = prototypes.info(program.fd)[VERIFIED_INSNS]
    finally:
        objects.close()
    assert walked
    assert all(walked.values())
    most = sorted(walked.items(), key=lambda item: -item[1])[:8]
    assert sum(walked.values()) <= WALKED_MAX[variant], most
