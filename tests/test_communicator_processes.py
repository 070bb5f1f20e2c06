"""The communicator over real processes, real UCX and real vendors: one job for each topology, which runs everything."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm._ranks.launch import mpi_command
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import VendorCall
from hetcomm.testing import RanksFailed, reference, run_ranks
from hetcomm.types import DataType, ReduceKind, has_meaning

from .ranks import once, run_in_turn
from .runtime.invoke import InForm, equal, inputs_of, invocation, random_sums, share
from .scripts import DEADLINE, PATIENCE, outside, python, run

TOPOLOGIES = {
    "2+2": ("mpi", "mpi", "oneccl", "oneccl"),
    "1+3": ("mpi", "oneccl", "oneccl", "oneccl"),
    "2+1+1": ("mpi", "mpi", "oneccl", "ucx"),
}
COUNTS = (0, 1, 5, 600)
ENV = PATIENCE


def cases(nranks: int) -> Iterator[tuple[Collective, bool]]:
    """Every dtype, op and collective, and every vector form; counts, roots, places and forms of call take turns."""
    turn = 0
    for dtype in DataType:
        for kind in CollectiveKind:
            for op in kind.ops:
                if op is not None and not has_meaning(op, dtype):
                    continue
                turn += 1
                root = turn % nranks if kind.has_root else None
                yield Collective(kind, nranks, COUNTS[turn % len(COUNTS)], dtype, op, root), turn % 3 == 0
                if kind.has_blocks and op in (None, ReduceKind.SUM, ReduceKind.LXOR):
                    pairs = kind is CollectiveKind.ALL_TO_ALL
                    blocks = [(5 * block + turn) % 7 for block in range(nranks**2 if pairs else nranks)]
                    vector = Collective(kind, nranks, sum(blocks), dtype, op, root, counts=tuple(blocks))
                    yield vector, turn % 3 == 1 and not pairs


def run_matrix(part: int, of: int) -> tuple[int, list[str], dict[str, str]]:
    """A share of the cases on one communicator: how many, what was wrong, and a digest of each result that all ranks
    have."""
    wrong: list[str] = []
    digests: dict[str, str] = {}
    count = 0
    with hetcomm.init() as comm:
        everything = list(enumerate(cases(comm.nranks)))
        due = share(len(everything), part, of)
        for turn, (collective, in_place) in everything:
            if turn not in due:
                continue
            inputs = inputs_of(collective, turn, nans=True)
            factors = [rank % 2 + 1 for rank in range(comm.nranks)]
            premul = collective.op is ReduceKind.PREMUL_SUM
            expected = reference(collective, inputs, factors if premul else None)[comm.rank]
            mine = invocation(collective.with_in_place(in_place), comm.rank, inputs[comm.rank], factors[comm.rank])
            getattr(InForm(comm, turn // 3), mine.name)(*mine.args)
            got = mine.output()
            count += 1
            name = f"{turn}: {collective}"
            if not equal(got, expected):
                wrong.append(f"{name}: {got} instead of {expected}")
            if collective.kind.is_same_everywhere and got is not None:
                digests[name] = hashlib.sha256(got.tobytes()).hexdigest()
        digests |= random_sums(comm, 7, 10007)
    return count, wrong, digests


def check_matrix(name: str, inlined: bool, part: int, of: int) -> None:
    vendors, env = TOPOLOGIES[name], ENV if inlined else ENV | {"HETCOMM_INLINE_BYTES": "0"}
    results = run_ranks(len(vendors), run_matrix, part, of, vendors=vendors, env=env, timeout=DEADLINE)
    whole = len(list(cases(len(vendors))))
    for rank, (count, wrong, digests) in enumerate(results):
        assert wrong == [], f"rank {rank}"
        assert count == len(share(whole, part, of))
        assert digests == results[0][2], f"rank {rank} has other bits than rank 0"


# The topologies share the cases. Vendors are called in the jobs of tests/test_mixed_vendors.py too.
@pytest.mark.parametrize(("part", "name", "inlined"), [(0, "2+2", True), (1, "1+3", True), (2, "2+1+1", False)])
def test_every_dtype_op_and_collective_equals_numpy(part: int, name: str, inlined: bool) -> None:
    check_matrix(name, inlined, part, len(TOPOLOGIES))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inlined"), [*((name, True) for name in TOPOLOGIES), ("2+1+1", False)])
def test_all_cases_on_every_topology(name: str, inlined: bool) -> None:
    check_matrix(name, inlined, 0, 1)


def start_works(comm: hetcomm.Communicator, seed: int) -> list[tuple[hetcomm.Work, Callable[[], bool]]]:
    """Start one work of each kind, with checks of what they give."""
    found: list[tuple[hetcomm.Work, Callable[[], bool]]] = []
    for number, kind in enumerate(CollectiveKind):
        nranks, op = comm.nranks, ReduceKind.SUM if kind.reduces else None
        root = (seed + number) % nranks if kind.has_root else None
        pairs = nranks**2 if kind is CollectiveKind.ALL_TO_ALL else nranks
        blocks = tuple((seed + block) % 5 * 11 for block in range(pairs))
        uniform = Collective(kind, nranks, 10 ** (seed % 5), DataType.INT64, op, root)
        vector = (
            Collective(kind, nranks, sum(blocks), DataType.INT64, op, root, counts=blocks) if kind.has_blocks else None
        )
        for collective in (uniform, vector):
            if collective is None:
                continue
            inputs = inputs_of(collective, seed + number)
            mine = invocation(collective, comm.rank, inputs[comm.rank])
            wanted = reference(collective, inputs)[comm.rank]
            work = getattr(comm, mine.name)(*mine.args, async_op=True)
            found.append((work, lambda mine=mine, wanted=wanted: equal(mine.output(), wanted)))
    right, left = (comm.rank + 1) % comm.nranks, (comm.rank - 1) % comm.nranks
    theirs = np.zeros(3000 * (1 + seed % 20))
    sent = comm.send(np.full(len(theirs), float(comm.rank)), right, tag=seed, async_op=True)
    taken = comm.recv(theirs, left, tag=seed, async_op=True)
    assert sent is not None
    assert taken is not None
    return [*found, (sent, lambda: True), (taken, lambda: bool((theirs == left).all()))]


def run_works() -> list[str]:
    """Works on a communicator and on two parts of it, across and along the clusters, all under way at once."""
    wrong: list[str] = []
    with hetcomm.init() as comm:
        across, along = comm.split(comm.rank % 2), comm.split(int(comm.rank >= comm.nranks // 2))
        assert across is not None
        assert along is not None
        comms = [comm, across, along]
        for turn in range(2):
            open_works = []
            for seed in range(3):
                for number in range(len(comms)):
                    part = comms[(number + comm.rank) % len(comms)] if turn else comms[number]
                    open_works += [(part, *each) for each in start_works(part, 7 * turn + 3 * seed)]
            comm.barrier()
            if comm.rank % 2:
                open_works.reverse()
            for part, work, check in open_works:
                work.wait()
                if not check():
                    wrong.append(f"turn {turn}, {part}, {work}")
        wrong += run_requests(comm, across)
        comm.all_reduce(np.ones(100_000), async_op=True)  # dropped
    return wrong


def run_requests(comm: hetcomm.Communicator, part: hetcomm.Communicator) -> list[str]:
    """Persistent requests on two communicators, and groups that mix everything."""
    wrong = []
    array, blocks = np.zeros(5000), np.zeros(comm.nranks, int)
    sums, swaps = comm.all_reduce_init(array), part.all_to_all_init(halves := np.zeros(2 * part.nranks))
    for turn in range(10):
        array[:] = turn + comm.rank
        halves[:] = part.rank
        for request in (sums, swaps) if comm.rank % 2 else (swaps, sums):
            request.start()
        sums.wait()
        swaps.wait()
        expected = comm.nranks * turn + comm.nranks * (comm.nranks - 1) / 2
        if not (array == expected).all() or not (halves == np.repeat(np.arange(part.nranks), 2)).all():
            wrong.append(f"run {turn}: {array} instead of {expected}, {halves}")
    for turn in range(3):
        big, small = np.full(70_000, comm.rank), np.zeros(70_000, int)
        with comm.group():
            for peer in range(comm.nranks):
                comm.send(big, peer, tag=turn)
            comm.all_gather(np.array([comm.rank]), blocks)
            comm.all_to_all_v(big[: comm.nranks], small[: comm.nranks], [1] * comm.nranks, [1] * comm.nranks)
            for peer in reversed(range(comm.nranks)):
                comm.recv(np.empty(70_000), peer, tag=turn)
        if blocks.tolist() != list(range(comm.nranks)) or small[: comm.nranks].tolist() != blocks.tolist():
            wrong.append(f"group {turn}: {blocks}, {small[: comm.nranks]}")
    return wrong


@pytest.mark.parametrize("name", ["2+2", pytest.param("2+1+1", marks=pytest.mark.slow)])
def test_many_works_on_several_communicators_in_any_order(name: str) -> None:
    for rank, wrong in enumerate(told(name)["works"]):
        assert wrong == [], f"rank {rank}"


def run_points() -> dict[str, Any]:
    """Messages, split, trace and statistics on real processes."""
    import ml_dtypes

    with hetcomm.init() as comm:
        rank, n = comm.rank, comm.nranks
        right, left = (rank + 1) % n, (rank - 1) % n
        got = []
        for count, dtype in ((0, "f8"), (1, "f8"), (5000, "i2"), (300_000, "f4"), (3, ml_dtypes.bfloat16)):
            mine, theirs = np.full(count, rank + 1, dtype), np.zeros(count, dtype)
            for turn in range(2):
                if rank % 2 == turn:
                    comm.send(mine, right, tag=count)
                else:
                    comm.recv(theirs, left, tag=count)
            got.append(bool((theirs == left + 1).all()))
        errors = []
        comm.barrier()
        if rank == 0:
            comm.send(np.zeros(4), 1)
            comm.send(np.zeros(2), 1)
        if rank == 1:
            for size in (3, 3):
                try:
                    comm.recv(np.zeros(size), 0)
                except hetcomm.TransportError as error:
                    errors.append(str(error))
        comm.barrier()
        crossing = comm.split(rank % 2, key=-rank)
        assert crossing is not None
        total = np.array([rank])
        crossing.all_reduce(total)
        summed = int(total[0])
        from mpi4py import MPI

        total[0] = rank
        comm.all_reduce(total, op=MPI.MAX)
        assert total[0] == n - 1
        alone = comm.split(None if rank else 7)
        with comm.trace() as trace:
            comm.all_reduce(np.ones(50))
        return {
            "got": got,
            "errors": errors,
            "split": (crossing.rank, crossing.nranks, summed),
            "alone": alone if alone is None else (alone.rank, alone.nranks),
            "clusters": [(c.name, c.vendor, tuple(c.ranks)) for c in crossing.topology.clusters],
            "labels": [span.label for span in trace.timeline.spans],
            "by the vendor": [
                f"{dtype} {op}"
                for dtype in ("i4", "u2", "?", "f4")
                for op in ("sum", "max", "bxor", "lor")
                if hetcomm.types.has_meaning(ReduceKind(op), DataType(np.dtype(dtype).name))
                and any(
                    isinstance(step, VendorCall)
                    for step in comm.explain("all_reduce", np.ones(50, dtype), op=op).program.steps
                )
            ],
            "explained": str(comm.explain("all_reduce", np.ones(50))),
            "sent": comm.statistics().bytes_between_clusters,
        }


def test_messages_split_and_trace() -> None:
    env = {**ENV, "HETCOMM_INLINE_BYTES": "0"}
    results = run_ranks(4, run_points, vendors=TOPOLOGIES["2+2"], env=env, timeout=DEADLINE)
    for rank, result in enumerate(results):
        assert all(result["got"]), (rank, result["got"])
        assert result["split"] == (1 - rank // 2, 2, [2, 4][rank % 2])
        assert result["alone"] == (None if rank else (0, 1))
        assert [name for name, _, _ in result["clusters"]] == ["mpi", "oneccl"]
        added = [label for label in result["labels"] if label.startswith("vendor ") and " sum " in label]
        assert added, "the vendors do the sums"
        reduced = ["i4 sum", "i4 max", "i4 bxor", "i4 lor", "u2 sum", "u2 max", "u2 bxor", "u2 lor", "f4 sum", "f4 max"]
        lacking = ("bxor", "lor") if rank > 1 else ()  # in oneCCL; no vendor reduces bool
        assert result["by the vendor"] == [each for each in reduced if not each.endswith(lacking)]
        assert "bytes between clusters: 800, the least possible: 800" in result["explained"]
        assert result["sent"] > 0
    longer, shorter = results[1]["errors"]
    assert "longer than the 24 bytes" in longer
    assert "rank 0 has 16 bytes" in shorter


def run_refusals() -> list[tuple[str, str]]:
    """One rank's bad argument, and one rank's other plan: what every rank gets, and that the next call works."""
    found = []
    with hetcomm.init() as comm:

        def attempt(call: Any) -> None:
            try:
                call()
            except hetcomm.HetcommError as error:
                found.append((type(error).__name__, str(error)))
            total = np.ones(3)
            comm.all_reduce(total)
            assert (total == comm.nranks).all()

        attempt(lambda: comm.all_reduce(np.ones(8)[:: 1 + comm.rank // 3]))
        attempt(lambda: comm.broadcast(np.ones(7), root=comm.rank // 3))
        attempt(lambda: comm.split("red" if comm.rank == 1 else 1))  # type: ignore[arg-type]
        got = np.zeros(4)

        def grouped() -> None:
            with comm.group():
                comm.send_recv(np.ones(4), got, (comm.rank + 1) % 4, (comm.rank - 1) % 4)
                comm.gather(np.ones(2), np.ones(8), root=4 if comm.rank == 2 else 0)

        attempt(grouped)
        assert (got == 0).all()
        rest = np.ones(6)
        work = comm.all_reduce(rest, async_op=True)
        attempt(lambda: comm.all_to_all_v(np.ones(4), np.ones(4), [1] * 4, [1, 1, 1, 1 + comm.rank // 3]))
        assert work is not None
        work.wait()
        assert (rest == comm.nranks).all()
    return found


def test_misuse_is_raised_on_every_rank() -> None:
    for rank, found in enumerate(told("2+2")["refusals"]):
        assert [kind for kind, _ in found] == [
            "UsageError",
            "PlanMismatchError",
            "UsageError",
            "UsageError",
            "UsageError",
        ], rank
        strided, roots, color, grouped, sizes = (text for _, text in found)
        assert "root" in grouped
        assert "0 to 3" in grouped
        assert "argument 'out_array' has 4 elements" in sizes
        assert "'in_array' is not C-contiguous" in strided
        assert "ascontiguousarray" in strided
        assert "root 0" in roots
        assert "root 1" in roots
        assert "'color'" in color


def init_error(**kwargs: Any) -> tuple[str, str]:
    try:
        hetcomm.init(**kwargs)
    except hetcomm.HetcommError as error:
        return type(error).__name__, str(error)
    return "", ""


def run_bad_inits() -> list[tuple[str, str]]:
    """What `init` raises when one rank's settings are unusable; each of them is one more init in one process."""
    second = int(os.environ["OMPI_COMM_WORLD_RANK"] if "OMPI_COMM_WORLD_RANK" in os.environ else os.environ["PMI_RANK"])
    here = socket.gethostname()
    one = hetcomm.Topology((hetcomm.Cluster("c", "mpi", (0,)),))
    two = hetcomm.Topology((hetcomm.Cluster("c", "mpi", (0, 1)),))
    other = hetcomm.Topology((hetcomm.Cluster("d", "mpi", (0, 1)),))
    return [
        init_error(vendor="nvlink" if second else "mpi"),
        init_error(topology=one),
        init_error(topology=other if second else two),
        init_error(topology="nowhere.toml" if second else two),
        init_error(topology=two, vendor="ucx" if second else None),
        init_error(topology=hetcomm.Topology((hetcomm.Cluster("c", "mpi", (0, 1), hosts=(here, "elsewhere")),))),
    ]


def test_init_fails_on_every_rank_if_it_fails_on_one() -> None:
    for found in run_ranks(2, run_bad_inits, env=ENV, timeout=DEADLINE):
        kinds = [kind for kind, _ in found]
        assert kinds == ["UsageError", *["TopologyError"] * 5]
        vendor, size, differ, missing, contradiction, strange = (text for _, text in found)
        assert f"puts rank 1 on host 'elsewhere', but it runs on '{socket.gethostname()}'" in strange
        assert "rank 1" in vendor
        assert "'nvlink'" in vendor
        assert "oneccl" in vendor, "it lists those there are"
        assert "describes 1 ranks, but the job has 2" in size
        assert "different topologies" in differ
        assert "rank 1" in missing
        assert "nowhere.toml" in missing
        assert "HETCOMM_VENDOR" in contradiction


def test_a_script_without_launcher_is_a_job_of_one_rank() -> None:
    done = python("""
        import sys
        import numpy, hetcomm
        with hetcomm.init() as comm:
            array = numpy.arange(4)
            comm.all_reduce(array, op="avg")
            comm.barrier()
            part = comm.split(0)
            part.broadcast(array)
            out = numpy.zeros(4, int)
            part.all_gather(array, out)
            print(comm.rank, comm.nranks, array.tolist(), out.tolist(), "mpi4py" in sys.modules, repr(comm))
        print(comm.closed, part.closed)
        """)
    first, second = done.stdout.splitlines()
    assert first == "0 1 [0, 1, 2, 3] [0, 1, 2, 3] False <hetcomm.Communicator, rank 0 of 1 (ucx: 1)>"
    assert second == "True True"


def run_and_forget() -> int:
    comm = hetcomm.init()
    comm.barrier()
    return comm.nranks


def test_forgetting_to_close_ends_cleanly() -> None:
    assert told("2+2")["forget"] == [4] * 4


@once
def told(name: str) -> dict[str, list[Any]]:
    """What ranks return that do all of this one after the other, and end without closing their last communicator."""
    targets = {"works": run_works, "refusals": run_refusals, "forget": run_and_forget}
    return run_in_turn(4, targets, vendors=TOPOLOGIES[name], env=ENV)


def run_and_raise() -> None:
    with hetcomm.init() as comm:
        comm.barrier()
        if comm.rank == 1:
            raise ZeroDivisionError("a fault of the user's")
        comm.all_reduce(np.ones(3))


def test_a_rank_that_raises_tells_the_others() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(4, run_and_raise, vendors=TOPOLOGIES["2+2"], env=ENV, timeout=DEADLINE, recovery=True)
    failures = caught.value.failures
    assert "ZeroDivisionError" in failures.pop(1)
    assert set(failures) == {0, 2, 3}
    for rank, text in failures.items():
        assert "PeerFailureError" in text, rank
    assert any("ended with ZeroDivisionError" in text for text in failures.values())


FORGETFUL = """
import sys, hetcomm, numpy
comm = hetcomm.init()
comm.barrier()
if comm.rank == 1:
    raise ZeroDivisionError("a fault of the user's")
try:
    comm.all_reduce(numpy.ones(3))
except hetcomm.PeerFailureError as error:
    print("noticed", comm.rank, flush=True)
"""


def test_a_script_whose_rank_raises_ends_without_close() -> None:
    env = [{**ENV, "HETCOMM_VENDOR": vendor} for vendor in TOPOLOGIES["2+2"]]
    command = mpi_command([(each, [sys.executable, "-c", FORGETFUL]) for each in env], recovery=True)
    done = run(command, env=os.environ | {"PYTHONPATH": outside()["PYTHONPATH"]}, status=None)
    assert "ZeroDivisionError" in done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "noticed" in line) == [
        "noticed 0",
        "noticed 2",
        "noticed 3",
    ]
