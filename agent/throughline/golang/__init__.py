"""Go binaries, read offline: what the group `go` needs to know before it attaches anything."""

from throughline.golang.analysis import analyse
from throughline.golang.program import Program, Site, UnsupportedError

__all__ = ["Program", "Site", "UnsupportedError", "analyse"]
