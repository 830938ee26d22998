"""The table of providers: one for each runtime or TLS library that the agent probes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from throughline.bpf import libbpf
from throughline.features.state import LeftOut
from throughline.probes.provider import Provider
from throughline.runtimes.go.provider import GoProvider
from throughline.runtimes.java.provider import JavaProvider
from throughline.runtimes.node.provider import NodeProvider
from throughline.runtimes.proxies.provider import ProxyProvider
from throughline.runtimes.python.provider import PythonProvider
from throughline.runtimes.ruby.provider import RubyProvider
from throughline.tls.openssl import OpenSsl


@dataclass(frozen=True, slots=True)
class Entry:
    """One provider."""

    group: str  # the feature group that it belongs to: the provider is made while this is on
    # From the loaded objects (group -> object) and the programs that the kernel refuses.
    make: Callable[[Mapping[str, libbpf.Object], Collection[str]], Provider]
    optional: tuple[str, ...] = ()  # groups whose programs it attaches too, where they are on


TABLE = (
    Entry("tls", lambda _loaded, _without: OpenSsl()),
    Entry("go", GoProvider.make, optional=("go_write",)),
    Entry("java", JavaProvider.make),
    Entry("node", NodeProvider.make),
    Entry("python", PythonProvider.make),
    Entry("proxies", ProxyProvider.make),
    Entry("ruby", RubyProvider.make),
)


def make(
    loaded: Mapping[str, libbpf.Object], left_out: Callable[[str], Iterable[LeftOut]]
) -> dict[str, list[Provider]]:
    """Group -> its providers, for the groups that are on.

    `loaded`: the objects of these groups. `left_out`: what the kernel refuses of a group.
    """
    made: dict[str, list[Provider]] = {}
    for entry in TABLE:
        if entry.group in loaded:
            groups = (entry.group, *entry.optional)
            without = [program.program for group in groups for program in left_out(group)]
            made.setdefault(entry.group, []).append(entry.make(loaded, without))
    return made
