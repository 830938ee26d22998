"""Hides values of headers, which errors of libraries and answers of receivers may repeat."""

from __future__ import annotations

from collections.abc import Iterable

from throughline.config.model import OtlpTarget

_SHORTEST = 4  # characters; a shorter value is no secret, and is a part of many texts


class Secrets:
    """Hides the values of the headers of these targets in texts for people."""

    def __init__(self, targets: Iterable[OtlpTarget]) -> None:
        values = {value for target in targets for value in target.headers.values()}
        # an error may repeat `abc` of `Bearer abc`
        values |= {word for value in values for word in value.split()[1:]}
        shown = (repr(value)[1:-1] for value in values)
        self._values = sorted({*values, *shown}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        for value in self._values:
            if len(value) >= _SHORTEST:
                text = text.replace(value, "(hidden)")
        return text
