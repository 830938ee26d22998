"""Go binaries, read offline: what the group `go` needs to know before it attaches anything."""

from throughline.runtimes.go.analysis import analyse, digest, is_go
from throughline.runtimes.go.program import Program, Site, UnsupportedError
from throughline.runtimes.go.starts import Starts

__all__ = ["Program", "Site", "Starts", "UnsupportedError", "analyse", "digest", "is_go"]
