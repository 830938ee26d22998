"""Builds the bundle, the one file that a host needs. Not part of what it ships."""
