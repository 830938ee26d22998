"""The provider for Go: the sites of Go programs, and which of their goroutines inherit a request.

go.bpf.o finds the layouts of a program in tl_go_binaries, by the index in the cookies of its
probes. When a goroutine starts another one, it puts the function of that into tl_go_starts; the
agent answers there whether such goroutines work for the request of the one that started them
(starts.py).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from throughline.bpf import abi, libbpf, maps
from throughline.elf.elf import MalformedError
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site
from throughline.runtimes.go.binary import pack
from throughline.runtimes.go.families import FAMILIES, probed
from throughline.runtimes.go.indices import PROCESS_KEY_BYTES, Indices
from throughline.runtimes.go.pending import Analysed, PendingAnalyses
from throughline.runtimes.go.program import UnsupportedError
from throughline.steps import Turns

log = logging.getLogger(__name__)

# Maps with entries of an earlier run. Its indices are not valid any more: its programs are found
# again and get others, and calls that its probes have seen begin are not seen to end.
_EARLIER = ("tl_unit_layouts", "tl_go_exchanges", "tl_go_writers", "tl_go_written")
_MAX_KEPT_BYTES = 64 << 20  # for the starts of functions: 4 bytes each
BUDGET_SECONDS = 0.02  # of a tick, for looking at functions
_NEW = bytes([abi.GoStart.NEW])
_INHERITS, _RECEIVES = bytes([abi.GoStart.INHERITS]), bytes([abi.GoStart.RECEIVES])


class GoProvider:
    """The Go programs among the files of traced processes. Not for several threads."""

    name = "go"

    def __init__(
        self,
        loaded: libbpf.Object,
        *,
        write: bool,
        without: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write`: the group go_write is on. `without`: programs that this kernel refuses."""
        self._write = write
        self._without = frozenset(without)
        self._starts = loaded.map_fd("tl_go_starts")
        for name in _EARLIER:
            earlier = loaded.map_fd(name)
            for key in list(maps.keys(earlier, PROCESS_KEY_BYTES)):
                maps.delete(earlier, key)
        self._indices = Indices(loaded)
        self._known: dict[int, Analysed] = {}  # by index of tl_go_binaries
        self._analyses = PendingAnalyses(clock)
        self.failures: Counter[str] = Counter()

    @classmethod
    def make(cls, loaded: Mapping[str, libbpf.Object], without: Collection[str]) -> GoProvider:
        """For the table of providers."""
        return cls(loaded["go"], write="go_write" in loaded, without=without)

    def find(self, file: int) -> Found | Answer:
        """The sites of a Go program. NOT_MINE for other files, and for programs not supported."""
        try:
            found = self._analyses.ask(file)
            return found if isinstance(found, Answer) else self._sites(found)
        except (MalformedError, UnsupportedError) as error:
            self.failures[type(error).__name__.removesuffix("Error").lower()] += 1
            log.warning("a Go program is not traced: %s", error)
        except OSError:
            raise
        except Exception as error:  # the file belongs to a traced process: it must not end us
            self.failures["failed"] += 1
            log.exception("a Go program is not traced: %r", error)
        return Answer.NOT_MINE

    def tick(self, probed: Sequence[Probed]) -> Turns[None]:
        """Forgets programs that are not probed any more, and answers tl_go_starts.

        Answers that do not fit into the budget are given in the next ticks; until then goroutines
        that begin with these functions inherit no request.
        """
        files = {_index(site): each.file for each in probed for site in each.sites}
        self._forget(files)
        until = time.monotonic() + BUDGET_SECONDS
        for key in maps.keys(self._starts, abi.GO_START_KEY.size):
            if maps.lookup(self._starts, key, 1) != _NEW:
                continue
            start = abi.GoStartKey(*abi.GO_START_KEY.unpack(key))
            known = self._known.get(start.binary)
            if known is None:
                continue
            receives = self._receives(known, start.pc, files[start.binary])
            maps.update(self._starts, key, _RECEIVES if receives else _INHERITS)
            if time.monotonic() > until:
                break
            yield

    def describe(self, found: Probed) -> Mapping[str, str]:
        """The version of Go."""
        return {"version": self._known[_index(found.sites[0])].program.version}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """What depends on the probes goes with the next tick."""

    def close(self) -> None:
        """Stops the analysis that runs."""
        self._analyses.close()

    def _receives(self, known: Analysed, address: int, file: int) -> bool:
        """Does a goroutine with this first function work for others? Yes where it is not known."""
        try:
            return known.functions.receives(address, file)
        except (OSError, MalformedError):
            return True
        except Exception:  # as in `find`
            self.failures["failed"] += 1
            return True

    def _forget(self, used: Collection[int]) -> None:
        self._analyses.forget()
        for index in self._known.keys() - used:
            del self._known[index]
        self._indices.keep(used)

    def _sites(self, analysed: Analysed) -> Found | Answer:
        kept = {known.digest: known.functions.kept_bytes for known in self._known.values()}
        kept[analysed.digest] = analysed.functions.kept_bytes
        if sum(kept.values()) > _MAX_KEPT_BYTES:
            self.failures["too_many_programs"] += 1
            return Answer.NOT_MINE
        found: list[Site] = []
        program = analysed.program
        for number, family in enumerate(FAMILIES):
            sites = dict(probed(program, family, write=self._write, without=self._without))
            if not sites:
                continue
            packed = pack(program, family, write=self._write, without=self._without)
            # The file may have been written to between the analysis and the digest.
            told = hashlib.sha256(packed).hexdigest()
            index = self._indices.take(f"{analysed.digest} {number} {told}", packed)
            if not index:
                self.failures["too_many_programs"] += 1
                continue
            self._known[index] = analysed
            # The first family's entry of tl_unit_layouts serves all families.
            again = abi.Go.AGAIN if found else 0
            found += [
                Site(
                    probe,
                    site.offset,
                    single_stepped=site.single_stepped,
                    cookie=index | again | (abi.Go.RESTARTS if site.restarts else 0),
                )
                for probe, site in sites.items()
            ]
        return Found(tuple(found)) if found else Answer.NOT_MINE


def _index(site: Site) -> int:
    """The index of tl_go_binaries in the cookie of a site."""
    return site.cookie & (abi.Go.BINARIES - 1)
