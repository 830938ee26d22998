# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Text of others, fit for a terminal: names of files, lines of logs, what a program has said."""

from __future__ import annotations

import unicodedata

# What moves a cursor, changes colours, or is no character at all (Unicode's general categories):
# controls, format characters such as those that turn the direction of writing, surrogates.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text, *, keep=""):
    r"""The text with each control character as an escape such as \x1b, but those in `keep`."""
    return "".join(
        ascii(char)[1:-1]
        if unicodedata.category(char) in UNPRINTABLE and char not in keep
        else char
        for char in text
    )
