"""What `hetcomm.init` goes by: its arguments over the environment, all of it checked before the ranks meet.

What is wrong on one rank must be known on all, and they learn of it by meeting. So a rank whose settings cannot be used
comes to the meeting all the same, with what is enough for that.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hetcomm.calls.arguments import check_integer
from hetcomm.errors import HetcommError, UsageError
from hetcomm.types import Config, seconds
from hetcomm.works.refusals import typed

__all__ = ["BOOTSTRAPS", "settings"]

BOOTSTRAPS = ("mpi", "tcp", "single")

_TEXTS = ("vendor", "cluster", "ucx_home", "topology", "calibration")


def settings(config: Any, vendor: Any, cluster: Any, timeout: Any) -> tuple[Config, HetcommError | None]:
    """The configuration, from the environment unless given, with the arguments of `hetcomm.init` on top.

    Returns:
        It, and what is wrong with it, if anything is: then it is only good for meeting the other ranks.
    """
    try:
        return _settings(config, vendor, cluster, timeout), None
    except Exception as error:  # noqa: BLE001  # told to all ranks by whoever meets them
        return _enough(config, timeout), typed(error, "reading the settings of hetcomm.init")


def _settings(config: Any, vendor: Any, cluster: Any, timeout: Any) -> Config:
    if config is not None and not isinstance(config, Config):
        raise UsageError(
            f"argument 'config' is of type {type(config).__name__}", remedy="Pass a hetcomm.Config, or leave it out."
        )
    base = Config.from_environ() if config is None else config
    limit = ("Config.timeout", base.timeout) if timeout is None else ("argument 'timeout'", timeout)
    inline = None if base.inline_bytes is None else check_integer("Config.inline_bytes", base.inline_bytes, None)
    if inline is not None and inline < 0:
        raise UsageError(f"Config.inline_bytes is {inline}", remedy="Set a number of bytes, 0 or more.")
    made = replace(
        base,
        vendor=base.vendor if vendor is None else vendor,
        cluster=base.cluster if cluster is None else cluster,
        timeout=_seconds(*limit),
        inline_bytes=inline,
    )
    for name in _TEXTS:
        value = getattr(made, name)
        if isinstance(value, os.PathLike) and name not in ("vendor", "cluster"):
            made = replace(made, **{name: os.fspath(value)})
        elif not isinstance(value, str | None):
            raise UsageError(f"{name} is {value!r}, of type {type(value).__name__}", remedy="Pass a string.")
    if made.bootstrap not in (None, *BOOTSTRAPS):
        raise UsageError(
            f"HETCOMM_BOOTSTRAP={made.bootstrap!r} is not known", remedy="Set 'mpi', 'tcp' or 'single', or unset it."
        )
    return made


def _seconds(name: str, value: Any) -> float:
    try:
        return seconds(value)
    except UsageError as error:
        raise UsageError(f"{name} is {error.message}", remedy=error.remedy) from error


def _enough(config: Any, timeout: Any) -> Config:
    """How to meet the others, and for how long: what there is of that and can be used."""
    base = config if isinstance(config, Config) else Config.usable_part()
    found = Config(bootstrap=base.bootstrap if base.bootstrap in BOOTSTRAPS else None)
    for value in (timeout, base.timeout):
        try:
            return replace(found, timeout=seconds(value))
        except UsageError:  # or there is none
            continue
    return found
