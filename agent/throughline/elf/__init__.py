"""ELF files, read in pieces as small as the question."""
