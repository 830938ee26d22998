"""Probes in the files that traced processes execute: found, attached, watched, detached."""
