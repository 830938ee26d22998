"""Adds the packages of the release to the path, and runs the agent. bin/throughline runs this."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_name("python")))
sys.argv[0] = "throughline"

from throughline.commands.cli import main  # noqa: E402

sys.exit(main())
