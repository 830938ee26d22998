"""contexts.py in interpreters of one process, each in a thread of its own; they share the port.

    python interpreters.py own|shared COUNT

`own`: each has a lock of its own (PEP 684), as `concurrent.interpreters` makes them; `shared`: they
share the GIL, as before Python 3.12 and as mod_wsgi makes them.
"""

import sys
import threading
from pathlib import Path

CODE = f"import runpy; runpy.run_path({str(Path(__file__).with_name('contexts.py'))!r})"


def create(kind: str) -> tuple[object, int]:
    """Returns the module and an interpreter."""
    if sys.version_info >= (3, 13):
        import _interpreters

        return _interpreters, _interpreters.create("isolated" if kind == "own" else "legacy")
    import _xxsubinterpreters

    return _xxsubinterpreters, _xxsubinterpreters.create(isolated=kind == "own")


def run(kind: str) -> None:
    module, number = create(kind)
    said = module.run_string(number, CODE)
    if said:  # since Python 3.13 it returns the exception
        print(said, file=sys.stderr)


threads = [threading.Thread(target=run, args=(sys.argv[1],)) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
