"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from hetcomm.errors import UsageError

__all__ = ["format_nbytes", "format_seconds", "parse_nbytes"]

_UNITS: dict[str, int] = {"": 1, "B": 1}
_UNITS |= {f"{prefix}{unit}": 1000**power for power, prefix in enumerate("kMGT", 1) for unit in ("", "B")}
_UNITS |= {f"{prefix}i{unit}": 1024**power for power, prefix in enumerate("KMGT", 1) for unit in ("", "B")}


def parse_nbytes(text: str) -> int:
    """The number of bytes that `text` means: '4096', '64MiB', '1.5 GB'.

    k, M, G and T stand for powers of 1000, Ki, Mi, Gi and Ti for powers of 1024.

    Raises:
        UsageError: It means none, or no whole number.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS:
        raise UsageError(
            f"{text!r} is no size in bytes", remedy="Write a number with or without a unit: 4096, 64MiB, 1.5GB."
        )
    whole, _, fraction = match[1].partition(".")
    scale = int("1" + "0" * len(fraction))
    nbytes, rest = divmod(int(whole + fraction) * _UNITS[match[2]], scale)
    if rest:
        raise UsageError(f"{text!r} is not a whole number of bytes", remedy="Write another number or unit.")
    return nbytes


def format_nbytes(nbytes: float) -> str:
    """`nbytes` with a binary unit and at most four digits; exact below 1 KiB."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def format_seconds(seconds: float) -> str:
    """`seconds` with the unit that suits them and at most three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
