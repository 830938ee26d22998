"""Finished spans: decoded from the ring buffer, and named by their service."""
