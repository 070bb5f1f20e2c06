"""What ranks run in `tests/test_scans.py`."""

from __future__ import annotations

import numpy as np

import hetcomm
from hetcomm.errors import UsageError

LONG = 300_001
"""Elements of vectors that travel in pieces."""


def numbers(rank: int, count: int, seed: int = 0) -> np.ndarray:
    """Whole numbers, so that every order of additions gives the same."""
    return np.random.default_rng((rank, seed)).integers(-9, 10, count).astype(np.float64)


def prefixes(nranks: int, rank: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What NumPy says that `rank` gets of a scan and of an exscan."""
    every = np.cumsum([numbers(other, count, seed) for other in range(nranks)], axis=0)
    return every[rank], every[rank - 1] if rank else np.zeros(count)


def every_form() -> list[str]:
    """Scans blocking, in place, known, under way together, grouped, persistent; what was wrong."""
    wrong: list[str] = []

    def check(name: str, got: np.ndarray, wanted: np.ndarray) -> None:
        if not np.array_equal(got, wanted):
            wrong.append(f"{name}: {got} instead of {wanted}")

    with hetcomm.init() as comm:
        nranks, rank = comm.nranks, comm.rank
        for count in (0, 1, 5, 3000, LONG):
            wanted = prefixes(nranks, rank, count)
            for method, right in zip((comm.scan, comm.exscan), wanted, strict=True):
                name = f"{method.__name__} of {count}"
                for turn in range(4):  # from the second on it is known
                    mine, out = numbers(rank, count), np.full(count, 99.0)
                    method(mine, out)
                    check(f"{name}, turn {turn}", out, right)
                    check(f"input of {name}", mine, numbers(rank, count))
                    method(mine)
                    check(f"{name} in place, turn {turn}", mine, right)
        inputs = [numbers(rank, count, count) for count in (7, 100, LONG, 2000)]
        outs = [np.empty_like(each) for each in inputs]
        with comm.group():
            for number, (one, out) in enumerate(zip(inputs, outs, strict=True)):
                (comm.exscan if number % 2 else comm.scan)(one, out)
        works = [comm.scan(one, op="sum", async_op=True) for one in inputs]
        for number, (one, out, work) in enumerate(zip(inputs, outs, works, strict=True)):
            assert work is not None
            work.wait()
            right = prefixes(nranks, rank, len(one), len(one))
            check(f"grouped {number}", out, right[number % 2])
            check(f"under way {number}", one, right[0])
        for count in (9, LONG):
            x, y = np.empty(count), np.empty(count)
            requests = comm.scan_init(x, y), comm.exscan_init(x)
            for seed in range(3):
                for request, result, right in zip(requests, (y, x), prefixes(nranks, rank, count, seed), strict=True):
                    x[:] = numbers(rank, count, seed)
                    request.start()
                    request.wait()
                    check(f"persistent of {count}, turn {seed}", result, right)
            for request in requests:
                request.close()
    return wrong


def ops() -> list[str]:
    """Rank 0's exscan is the identity; factors are each rank's own; an average is refused by name on all ranks."""
    wrong: list[str] = []
    with hetcomm.init() as comm:
        for op, dtype, identity in (
            ("sum", "i4", 0),
            ("prod", "f4", 1),
            ("min", "i2", 32767),
            ("max", "i2", -32768),
            ("max", "u8", 0),
            ("min", "f8", np.inf),
            ("max", "f2", -np.inf),
        ):
            x = np.full(11, comm.rank + 2, dtype)
            comm.exscan(x, op=op)
            before = [other + 2 for other in range(comm.rank)]
            right = {"sum": sum, "prod": np.prod, "min": min, "max": max}[op](before) if before else identity
            if not (x == np.array(right, dtype)).all():
                wrong.append(f"{op} of {dtype}: {x} instead of {right}")
        for method in (comm.scan, comm.exscan):
            x = np.ones(3)
            method(x, op=hetcomm.premul_sum(float(comm.rank + 1)))
            right = sum(other + 1 for other in range(comm.rank + (method.__name__ == "scan")))
            if not (x == right).all():
                wrong.append(f"premul_sum: {x} instead of {right}")
            try:
                method(np.ones(3), op="avg")
            except UsageError as error:
                if f"{method.__name__} takes no op 'avg'" not in str(error):
                    wrong.append(str(error))
            else:
                wrong.append(f"{method.__name__} with avg is not refused")
        explanation = comm.explain("exscan", np.zeros(10))
        if explanation.bytes_between_clusters != explanation.least_bytes_between_clusters:
            wrong.append(str(explanation))
    return wrong
