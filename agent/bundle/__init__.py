"""Builds the bundle, the one file that a host needs. The bundle does not contain this package."""
