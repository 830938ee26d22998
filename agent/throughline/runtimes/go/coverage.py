"""The features that a program does not have, each with the first thing that is missing for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from throughline.runtimes.go.releases import Tested
from throughline.runtimes.go.wanted import FEATURES, Feature

_UNUSED = "the program does not use"
# http2.(*Framer).WriteHeaders: itself, and a frame of ten integers or more
_FRAME_REGISTERS = 11
_MODULE_VERSION = re.compile(r"v([0-9]{1,6})\.([0-9]{1,6})\.")


def missing(
    functions: Collection[str],
    unsure: Mapping[str, str],
    offsets: Collection[str],
    types: Collection[str],
    modules: Mapping[str, str],
    *,
    registers: int,
) -> dict[str, str]:
    """Feature -> reason, for a program with these functions, fields, types and modules.

    `unsure`: functions that are there but that a probe may not see -> why. `registers`: how many
    the processor has for arguments.
    """
    reasons: dict[str, list[str]] = {}
    for feature in FEATURES:
        reason = (
            _lacks_functions(feature, functions, unsure)
            or _lacks_versions(feature, modules)
            or next((f"no offset of {g[0]}" for g in feature.offsets if g[0] not in offsets), "")
            or next((f"no type {g[0]}" for g in feature.types if g[0] not in types), "")
            or _lacks_memory(feature, registers)
        )
        reasons.setdefault(feature.name, []).append(reason)
    # Of several variants of a feature: the reason of the one that the program uses.
    return {
        name: next((each for each in found if not each.startswith(_UNUSED)), found[0])
        for name, found in reasons.items()
        if "" not in found
    }


def is_used(feature: Feature, functions: Collection[str]) -> bool:
    """Does the program have all functions of a feature?"""
    needed = (*feature.functions, *feature.shared)
    return all(any(name in functions for name in group) for group in needed)


def _lacks_functions(
    feature: Feature, functions: Collection[str], unsure: Mapping[str, str]
) -> str:
    own = {name for group in feature.functions for name in group}
    if feature.package and not any(name in functions or name in unsure for name in own):
        return f"{_UNUSED} {feature.package}"
    for group in (*feature.functions, *feature.shared):
        if not any(name in functions for name in group):
            return next((unsure[n] for n in group if n in unsure), f"no function {group[0]}")
    return ""


def _lacks_versions(feature: Feature, modules: Mapping[str, str]) -> str:
    reasons = (_untested(name, modules.get(name, ""), m) for name, m in feature.modules.items())
    return next(filter(None, reasons), "")


def _lacks_memory(feature: Feature, registers: int) -> str:
    if feature.frame and registers >= _FRAME_REGISTERS:
        return "this processor gets the frame in registers, which no probe can change"
    return ""


def _untested(name: str, version: str, tested: Tested) -> str:
    """Why a feature of a module is not used in this version, else "".

    A program that was not built from modules, such as those of Debian, has no versions in it. Then
    only the functions and fields decide.
    """
    if version.startswith("=>"):
        return f"{name} is replaced by {version[3:]}"
    match = _MODULE_VERSION.match(version)
    if match is None:
        return ""
    release = int(match[1]), int(match[2])
    if release < tested.oldest:
        return f"{name} {version} is older than v{tested.oldest[0]}.{tested.oldest[1]}"
    if release > tested.newest:
        newest = f"v{tested.newest[0]}.{tested.newest[1]}"
        return f"{name} {version} is newer than what was tested, {newest}"
    return ""
