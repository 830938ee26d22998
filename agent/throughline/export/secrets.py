"""Values of headers, which libraries and receivers may repeat in what they say."""

from __future__ import annotations

from collections.abc import Iterable

from throughline.config.model import OtlpTarget

_SHORTEST = 4  # characters: what is shorter is no secret, and stands everywhere


class Secrets:
    """Hides the values of the headers of these targets in texts for people."""

    def __init__(self, targets: Iterable[OtlpTarget]) -> None:
        values = {value for target in targets for value in target.headers.values()}
        # `Bearer abc` may be told without the scheme
        values |= {word for value in values for word in value.split()[1:]}
        shown = (repr(value)[1:-1] for value in values)
        self._values = sorted({*values, *shown}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        for value in self._values:
            if len(value) >= _SHORTEST:
                text = text.replace(value, "(hidden)")
        return text
