"""GnuTLS: where to probe gnutls_record_recv and gnutls_record_send in a file that defines them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site, c_sites
from throughline.steps import Turns

# function -> the program where it begins, the program where it returns
_PROGRAMS = {
    "gnutls_record_recv": ("tl_gnutls_recv", "tl_gnutls_has_recv"),
    "gnutls_record_send": ("tl_gnutls_send", "tl_gnutls_has_sent"),
}


class GnuTls:
    """The provider for GnuTLS 3, as a library."""

    name = "gnutls"

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        elf = arch.open_elf(file)
        functions = elf.functions("gnutls_record_recv", tuple(_PROGRAMS)) if elf else {}
        if elf is None or set(functions) != set(_PROGRAMS):
            return Answer.NOT_MINE
        found = [
            site
            for name, (begins, returns) in _PROGRAMS.items()
            for site in c_sites(elf, functions[name].address, begins, returns)
        ]
        return Found(tuple(found))

    def tick(self, _probed: Sequence[Probed]) -> Turns[None]:
        """Nothing changes in a file with GnuTLS."""
        yield from ()

    def describe(self, _found: Probed) -> Mapping[str, str]:
        """Nothing more is known of such a file."""
        return {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """Nothing depends on the probes of a file."""

    def close(self) -> None:
        """Holds nothing."""
