"""Uprobes in the files that traced processes execute: found, attached, watched, taken away."""
