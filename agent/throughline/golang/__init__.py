"""Go binaries, read offline: what the group `go` needs to know before it attaches anything."""

from throughline.golang.analysis import analyse, digest, is_go
from throughline.golang.program import Program, Site, UnsupportedError
from throughline.golang.starts import Starts

__all__ = ["Program", "Site", "Starts", "UnsupportedError", "analyse", "digest", "is_go"]
