"""The command line: `throughline run`, `status`, `doctor`, `inspect`, `detach`, `config`."""
