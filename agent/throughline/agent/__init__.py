"""The agent itself: its start, its loop, its housekeeping, its report."""
