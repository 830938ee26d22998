"""The first code that bin/throughline runs: puts the release's packages on the path."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))
sys.argv[0] = "throughline"

from throughline.cli import main

sys.exit(main())
