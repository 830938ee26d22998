"""The first code that bin/throughline runs: puts the release's packages on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_name("python")))
sys.argv[0] = "throughline"

from throughline.commands.cli import main  # noqa: E402

sys.exit(main())
