"""Python: which task of a process works for which request."""
