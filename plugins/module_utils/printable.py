# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Text from outside, safe for a terminal: names of files, lines of logs, output of programs."""

from __future__ import annotations

import unicodedata

# Unicode's general categories of characters that can move the cursor, change colours or turn the
# direction of writing (controls, formats, separators), and of code points without a character.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text, *, keep=""):
    r"""The text with each such character as an escape like \x1b, except those in `keep`."""
    return "".join(
        ascii(char)[1:-1]
        if unicodedata.category(char) in UNPRINTABLE and char not in keep
        else char
        for char in text
    )
