"""Finished spans and durations of requests, as the kernel records them."""
