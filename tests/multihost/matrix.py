"""What each rank of the job over several hosts runs: every collective, and all values compared with NumPy's.

Run by `test_hosts.py`; prints one line of JSON for each rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np

import hetcomm
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import reference
from hetcomm.types import DataType, ReduceKind

MARK = "matrix result "
COUNTS = (0, 1, 7, 1009, 60013)
DTYPES = (DataType.FLOAT32, DataType.INT64, DataType.FLOAT64, DataType.COMPLEX64)
OPS = (ReduceKind.SUM, ReduceKind.MAX, ReduceKind.AVG, ReduceKind.PROD)


def cases(nranks: int) -> Iterator[tuple[Collective, bool]]:
    """Every collective, dtype and count, uniform and as a vector; ops, roots and places take turns."""
    turn = count()
    for kind in CollectiveKind:
        for dtype in DTYPES:
            for elements in COUNTS:
                k = next(turn)
                op = OPS[k % len(OPS)]
                op = op if op in kind.ops else kind.ops[0]
                if dtype.is_complex and op not in (None, ReduceKind.SUM, ReduceKind.PROD):
                    op = ReduceKind.SUM
                root = k % nranks if kind.has_root else None
                yield Collective(kind, nranks, elements, dtype, op, root), k % 3 == 0
                if kind.has_blocks:
                    pairs = nranks if kind is CollectiveKind.ALL_TO_ALL else 1
                    counts = tuple((elements * (1 + j % 3)) // 3 if j % 4 else 0 for j in range(nranks * pairs))
                    in_place = k % 3 == 1 and kind is not CollectiveKind.ALL_TO_ALL
                    yield Collective(kind, nranks, sum(counts), dtype, op, root, counts=counts), in_place


def input_of(collective: Collective, rank: int, turn: int) -> Any:
    """Small whole numbers, whose sums and products no order of operations changes."""
    rng = np.random.default_rng((turn, rank))
    low = 1 if collective.op is ReduceKind.PROD else -2
    return rng.integers(low, 3, collective.in_count(rank)).astype(collective.dtype.value)


def run(comm: hetcomm.Communicator, collective: Collective, array: Any, in_place: bool) -> Any:
    """Call it on this rank's input; this rank's output, or None."""
    one, rank, kind = collective.with_in_place(in_place), comm.rank, collective.kind
    op = collective.op.value if collective.op else None
    root, counts = collective.root or 0, collective.counts
    out: Any = np.zeros(collective.out_count(rank), array.dtype)
    given: Any = array
    if in_place or kind is CollectiveKind.BROADCAST:
        whole = np.zeros(one.buffer_count(rank), array.dtype)
        whole[one.in_offset(rank) :][: len(array)] = array
        given, out = whole, None
        if (kind is CollectiveKind.GATHER and rank == root) or (kind is CollectiveKind.SCATTER and rank != root):
            given, out = None, whole
    suffix = "" if counts is None else "_v"
    call = getattr(comm, kind.value + suffix)
    match kind:
        case CollectiveKind.BROADCAST:
            call(given, root)
        case CollectiveKind.ALL_REDUCE | CollectiveKind.SCAN | CollectiveKind.EXSCAN:
            call(given, out, op)
        case CollectiveKind.REDUCE:
            call(given, out, root, op)
        case CollectiveKind.ALL_GATHER if counts is not None:
            call(given if out is not None else None, out if out is not None else given, counts)
        case CollectiveKind.REDUCE_SCATTER if counts is not None:
            call(given, out, counts, op)
        case CollectiveKind.GATHER | CollectiveKind.SCATTER if counts is not None:
            call(given, out, counts, root)
        case CollectiveKind.ALL_TO_ALL if counts is not None:
            call(given, out, list(one.sent_counts(rank)), list(one.received_counts(rank)))
        case CollectiveKind.REDUCE_SCATTER:
            call(given, out, op=op)
        case CollectiveKind.GATHER | CollectiveKind.SCATTER:
            call(given, out, root)
        case _:
            call(given, out)
    if not collective.out_count(rank):
        return None
    if in_place or kind is CollectiveKind.BROADCAST:
        return whole[one.out_offset(rank) :][: collective.out_count(rank)]
    return out


def messages(comm: hetcomm.Communicator) -> list[str]:
    """Messages of several sizes between all pairs of neighbours, both ways; what was wrong with them."""
    wrong = []
    for left, right in pairwise(range(comm.nranks)):
        for size in (0, 1, 1000, 1_000_003):
            mine = np.arange(size, dtype=np.float64) + comm.rank
            got = np.zeros(size)
            if comm.rank == left:
                comm.send(mine, right, tag=3)
                comm.recv(got, right, tag=4)
            elif comm.rank == right:
                comm.recv(got, left, tag=3)
                comm.send(mine, left, tag=4)
            if comm.rank in (left, right):
                peer = left + right - comm.rank
                if not np.array_equal(got, np.arange(size) + peer):
                    wrong.append(f"{size} elements from {peer} to {comm.rank}")
    return wrong


def main() -> None:
    hosts = [int(host) for host in sys.argv[1].split(",")]
    vendors = sys.argv[2].split(",")
    host = hosts[int(os.environ["OMPI_COMM_WORLD_RANK"])]
    wrong: list[str] = []
    digest = hashlib.sha256()
    number = 0
    with hetcomm.init(vendor=vendors[host], cluster=f"host{host}") as comm:
        for turn, (collective, in_place) in enumerate(cases(comm.nranks)):
            inputs = [input_of(collective, rank, turn) for rank in range(comm.nranks)]
            expected = reference(collective, inputs)[comm.rank]
            got = run(comm, collective, inputs[comm.rank], in_place)
            number += 1
            if (expected is None) != (got is None) or (expected is not None and not np.array_equal(got, expected)):
                wrong.append(f"{turn}: {collective}, in place {in_place}: {got} instead of {expected}")
            if collective.kind.is_same_everywhere and got is not None:
                digest.update(got.tobytes())
        wrong += messages(comm)
        sums = np.random.default_rng(comm.rank).standard_normal(100_003).astype(np.float32)
        comm.all_reduce(sums)  # whose bits depend on the order of additions
        digest.update(sums.tobytes())
        clusters = [(cluster.vendor, len(cluster)) for cluster in comm.topology.clusters]
        sent = comm.statistics().bytes_between_clusters
        rank = comm.rank
    result = {
        "rank": rank,
        "host": socket.gethostname(),
        "cases": number,
        "wrong": wrong[:5],
        "digest": digest.hexdigest(),
        "clusters": clusters,
        "sent": sent,
    }
    print(f"{MARK}{json.dumps(result)}\n", end="", flush=True)


if __name__ == "__main__":
    main()
