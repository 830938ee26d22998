"""Tests that need no root and no kernel feature: recorded records, real files, real receivers."""
