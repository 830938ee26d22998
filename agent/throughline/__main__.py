"""`python3 -m throughline` is the command itself."""

from __future__ import annotations

import sys

from throughline.commands.cli import main

sys.exit(main())
