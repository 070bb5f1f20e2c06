"""The jobs that the GPU benchmarks start: ranks that share one GPU, in clusters as labels say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hetcomm.testing import run_ranks

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}  # a machine without a network may not know its own name


def run(
    target: Callable[..., Any],
    *args: Any,
    vendors: Sequence[str],
    clusters: Sequence[str],
    seconds: float,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Run `target(*args)` on one rank for each of `vendors`, each in the cluster of that label.

    Args:
        target: An importable function.
        *args: Its arguments.
        vendors: The vendor of each rank.
        clusters: The label of each rank's cluster.
        seconds: After which what is left of the job is killed.
        env: What else goes into every rank's environment.

    Raises:
        RanksFailed: A rank failed or ran out of time.
    """
    wait = {"HETCOMM_TIMEOUT": str(max(5.0, seconds / 2))}
    environs = [{**LOOPBACK, **wait, "HETCOMM_CLUSTER": label, **(env or {})} for label in clusters]
    results: list[Any] = run_ranks(len(vendors), target, *args, vendors=vendors, env=environs, timeout=seconds)
    return results
