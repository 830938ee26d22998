"""Opens uprobes for the agent. The unit throughline-probes runs it: throughline/probes/opener.py.

It loads little: neither the agent's command line nor any package but Python's own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_name("python")))

from throughline.probes.opener import main

sys.exit(main(sys.argv[1:]))
