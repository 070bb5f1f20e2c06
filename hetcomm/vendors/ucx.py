"""The vendor `ucx`: hetcomm's own flat schedules over its own transport, for ranks that have no library.

It is built in and needs no foreign library but the UCX that hetcomm runs on anyway. It takes no calls: hetcomm writes
them out as messages (`hetcomm.topology.inline`), on host and device memory alike.
"""

from __future__ import annotations

from hetcomm.errors import VendorError
from hetcomm.types import DataType, MemoryKind
from hetcomm.vendors.base import Availability, Capabilities, Group, VendorCommunicator

__all__ = ["UcxVendor"]


class UcxVendor:
    """What ranks without a vendor's library have."""

    name = "ucx"
    capabilities = Capabilities(
        memory=frozenset(MemoryKind), collectives=frozenset(), dtypes=frozenset(DataType), ops=frozenset()
    )

    def availability(self) -> Availability:
        """Always usable: without a UCX there is no hetcomm to ask."""
        return Availability(True, version="built in")

    def create(self, group: Group) -> VendorCommunicator:
        """Refuse: see `Capabilities.collectives`.

        Raises:
            VendorError: Always.
        """
        raise VendorError("vendor 'ucx' makes no communicators: its calls are messages of hetcomm's", rank=group.rank)
