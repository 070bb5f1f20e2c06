"""What hetcomm's own tests and the authors of vendors and transports test with; knows nothing of pytest.

`run_ranks` runs a function on every rank of a local job; `check_vendor` and `check_transport` are the conformance
suites that any implementation must pass; `reference` computes what a collective must give, with NumPy;
`run_schedule` runs a whole schedule in one process. `FakeDevice`, with the vendors and the transport that belong to it,
stands for a GPU, at its most unkind timing. `strategies` (with hypothesis installed) draws topologies and
collectives.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hetcomm._conformance.fake_array import FakeArray
from hetcomm._conformance.fake_device import FakeDevice
from hetcomm._conformance.fake_vendor import FakeGroup, FakeStreamVendor
from hetcomm._conformance.hosted_vendor import HostedStreamVendor
from hetcomm._conformance.reference import reference, run_schedule
from hetcomm._conformance.transport import check_transport
from hetcomm._conformance.vendor import check_vendor
from hetcomm._conformance.watched_transport import WatchedTransport
from hetcomm._ranks.child import RankGroup, this_rank
from hetcomm._ranks.parent import RanksFailed, run_ranks

if TYPE_CHECKING:
    from hetcomm._conformance import strategies

__all__ = [
    "FakeArray",
    "FakeDevice",
    "FakeGroup",
    "FakeStreamVendor",
    "HostedStreamVendor",
    "RankGroup",
    "RanksFailed",
    "WatchedTransport",
    "check_transport",
    "check_vendor",
    "reference",
    "run_ranks",
    "run_schedule",
    "strategies",
    "this_rank",
]


def __getattr__(name: str) -> ModuleType:
    if name == "strategies":  # the one part that needs hypothesis
        return importlib.import_module("hetcomm._conformance.strategies")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
