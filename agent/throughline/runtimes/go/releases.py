"""The releases of Go and of its modules that the agent knows; it follows no others."""

from __future__ import annotations

from dataclasses import dataclass

OLDEST_MINOR, NEWEST_MINOR = 18, 27  # of Go 1
# Values of GOEXPERIMENT, also with "no" in front, that change neither how arguments are passed nor
# a layout that the agent knows in advance (internal/goexperiment of Go 1.18 to 1.27). The last line
# has those of distributors, which choose a library for cryptography. regabi… and mapsplitgroup
# change something, so they are not here.
HARMLESS = frozenset(
    (
        *("aliastypeparams", "allocheaders", "arenas", "boringcrypto", "cacheprog", "cgocheck2"),
        *("coverageredesign", "dwarf5", "exectracer2", "fieldtrack", "goroutineleakprofile"),
        *("greenteagc", "heapminimum512kib", "jsonv2", "loopvar", "newinliner", "pacerredesign"),
        *("pagetrace", "preemptibleloops", "randomizedheapbase64", "range", "rangefunc"),
        *("runtimefreegc", "runtimesecret", "simd", "sizespecializedmalloc", "spinbitmutex"),
        *("staticlockranking", "swissmap", "synchashtriemap", "synctest", "unified"),
        *("cngcrypto", "opensslcrypto", "strictfipsruntime", "systemcrypto"),
    )
)
GRPC, X_NET = "google.golang.org/grpc", "golang.org/x/net"


@dataclass(frozen=True, slots=True)
class Tested:
    """The oldest and the newest release of a module that were tested."""

    oldest: tuple[int, int]
    newest: tuple[int, int]


MODULES = {X_NET: Tested((0, 0), (0, 62)), GRPC: Tested((1, 38), (1, 85))}
