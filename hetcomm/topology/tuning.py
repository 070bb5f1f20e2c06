"""The numbers that planners turn on: what is small, what are many clusters, and how finely long vectors are cut.

`on` says what holds without a calibration. A vector is all blocks together where there are blocks.

==========================  =========================  ====================================================
clusters                    vector                     plan for all but gather, scatter and all_to_all
==========================  =========================  ====================================================
up to `many_clusters`       up to `few_steps_bytes`    one hub, as latency counts more than bytes
                            longer                     hubs by bandwidth, in chunks of `chunk_bytes`, at most
                                                       `max_chunks` of them
more, or more than          any                        all_reduce, reduce_scatter, all_gather: circulant;
`many_border_ranks`                                    broadcast, reduce: binomial tree or two binary trees
==========================  =========================  ====================================================

Where the vendors of all clusters take host memory, border ranks add the partials of other clusters by themselves. Where
all ranks share the memory of one host, there is no slow link to save, and every byte that a library copies once
more counts: vendor calls are written out as messages, border ranks add by themselves, and nobody passes on what another
rank can fetch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hetcomm.errors import UsageError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.topology.model import Topology

__all__ = ["ON_HOSTS", "ON_ONE_HOST", "RULES", "Tuning", "on"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a plan depends on beside collective and topology; it must be equal on all ranks.

    Attributes:
        few_steps_bytes: The longest vector that travels in as few steps as there can be.
        chunk_bytes: Of a vector, which is what the clusters work on at one time.
        max_chunks: More than the default make no difference that can be measured: the first and the last chunk are all
            that is not overlapped.
        many_clusters: With more of them the number of steps of a rank must not grow with the clusters.
        many_border_ranks: The same, of all clusters together.
        inline_bytes: Calls of vendors that take host memory are written out as messages in clusters whose number of
            ranks, times the bytes of the vector, is at most this: messages that run in C cost less there than calls.
        direct_exchange: A gather, scatter or all_to_all goes straight from rank to rank, rather than by way of border
            ranks. It moves the same bytes between clusters.
        narrow_broadcast_bytes: The longest vector of a broadcast for which one border rank of a cluster is used: where
            there are no uplinks to share it out over, fewer messages count.
        narrow_reduce_bytes: The same of a reduce, whose border ranks also share the additions.
        local_reduction: Border ranks with equal uplinks add up the partials of other clusters by themselves, in place
            of their vendor.

    Raises:
        UsageError: One of them is less than it can be (0, and 1 for the others).
    """

    few_steps_bytes: int = 64 << 10
    chunk_bytes: int = 1 << 20
    max_chunks: int = 64
    many_clusters: int = 32
    many_border_ranks: int = 256
    local_reduction: bool = False
    inline_bytes: int = 4 << 20  # 1 MiB in a cluster of four ranks
    direct_exchange: bool = False
    narrow_broadcast_bytes: int = 0
    narrow_reduce_bytes: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("few_steps_bytes", 0),
            ("inline_bytes", 0),
            ("narrow_broadcast_bytes", 0),
            ("narrow_reduce_bytes", 0),
            ("chunk_bytes", 1),
            ("max_chunks", 1),
            ("many_clusters", 1),
            ("many_border_ranks", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} of a tuning is less than {least}")

    def is_inlined(self, nbytes: int, nranks: int) -> bool:
        """Whether calls for a vector are written out in a cluster of so many ranks."""
        return nbytes * nranks <= self.inline_bytes

    def is_narrow(self, collective: Collective) -> bool:
        """Whether one border rank of a cluster is used."""
        most = {
            CollectiveKind.BROADCAST: self.narrow_broadcast_bytes,
            CollectiveKind.REDUCE: self.narrow_reduce_bytes,
        }
        return collective.total * collective.dtype.itemsize <= most.get(collective.kind, -1)

    def is_small(self, nbytes: int) -> bool:
        """Whether the fewest steps count."""
        return nbytes <= self.few_steps_bytes

    def chunks(self, nbytes: int, nclusters: int) -> int:
        """How many chunks a long vector is cut into.

        With more than 8 clusters fewer, since every chunk has a piece for each cluster.
        """
        most = max(1, self.max_chunks * 8 // max(nclusters, 8))
        return max(1, min(most, -(-nbytes // self.chunk_bytes)))


RULES = Tuning()
"""What holds without a calibration where a cluster's memory is a device's."""

ON_HOSTS = Tuning(local_reduction=True)
"""What holds where the vendors of all clusters take host memory: there an addition costs less than a call that adds."""

ON_ONE_HOST = Tuning(
    few_steps_bytes=1 << 20,
    chunk_bytes=4 << 20,
    local_reduction=True,
    inline_bytes=1 << 62,
    direct_exchange=True,
    narrow_broadcast_bytes=1 << 20,
    narrow_reduce_bytes=4 << 10,
)
"""What holds where these are all on one host, and all their ranks are border ranks."""

_HOST_VENDORS = frozenset({"gloo", "mpi", "oneccl", "ucx"})
_CALL_BYTES = 16 << 20  # a chunk where vendors are called on one host


def on(topology: Topology, inline_bytes: int | None = None) -> Tuning:
    """What holds on a topology without a calibration; the same on all ranks, whatever is installed where.

    Where `inline_bytes` is not None somebody has said which calls are written out: on one host too it is only those,
    and the vendors add.
    """
    rules = RULES if inline_bytes is None else replace(RULES, inline_bytes=inline_bytes)
    clusters = topology.clusters
    if len(clusters) == 1 or any(cluster.vendor not in _HOST_VENDORS for cluster in clusters):
        return rules
    hosts = {host for cluster in clusters for host in cluster.hosts}
    if len(hosts) > 1 or not all(cluster.hosts and len(cluster.border) == len(cluster) for cluster in clusters):
        return ON_HOSTS if inline_bytes is None else rules
    return ON_ONE_HOST if inline_bytes is None else replace(rules, chunk_bytes=_CALL_BYTES, direct_exchange=True)
