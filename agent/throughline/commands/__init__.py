"""The commands of `throughline`: one module each, which cli.py imports when it is called."""
