"""Solve a sparse system by conjugate gradients, its rows spread over all ranks, and prove that it went right.

    python examples/cg.py --plot cg.png                                                # one process
    mpirun -n 2 -x HETCOMM_VENDOR=mpi    python examples/cg.py --plot cg.png : \\
           -n 2 -x HETCOMM_VENDOR=oneccl python examples/cg.py --plot cg.png           # two clusters, two vendors

The system is the Poisson equation on a square, but only `poisson` and the picture know that: any symmetric positive
definite matrix would do. A product with the matrix needs some entries of the vector that other ranks have. Which ones
is found out once; then each product fetches just these, by a persistent `all_to_all_v`, and meanwhile multiplies what
is there. Ranks with a GPU compute with CuPy, the others with NumPy and SciPy; it is the same code. At the end rank 0
repeats it alone and compares.
"""

from __future__ import annotations

import argparse
import math
import sys
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import scipy.sparse

import hetcomm

ALLOWED = 1e-10  # difference from one process
TOLERANCE = 1e-12  # of the residual, compared with the right-hand side
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of the clusters, in the picture


def array_library(vendor):
    """CuPy on a rank that has a GPU and whose vendor takes its arrays, else NumPy; and its sparse matrices."""
    if vendor in ("nccl", "rccl", "ucx") and find_spec("cupy"):
        import cupy
        import cupyx.scipy.sparse

        if cupy.is_available():
            return cupy, cupyx.scipy.sparse
    return np, scipy.sparse


def poisson(size, begin, end):
    """Rows `begin` to `end` of the matrix on `size` x `size` points, and of the right-hand side: two charges."""
    row = np.arange(begin, end)
    i, j = np.divmod(row, size)
    neighbours = [(row, i >= 0, 4.0)]
    neighbours += [(row - size, i > 0, -1.0), (row + size, i < size - 1, -1.0)]
    neighbours += [(row - 1, j > 0, -1.0), (row + 1, j < size - 1, -1.0)]
    rows = np.concatenate([(row - begin)[there] for _, there, _ in neighbours])
    columns = np.concatenate([column[there] for column, there, _ in neighbours])
    values = np.concatenate([np.full(there.sum(), value) for _, there, value in neighbours])
    matrix = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(end - begin, size * size))
    x, y = (j + 1) / (size + 1), (i + 1) / (size + 1)
    charges = np.exp(-100 * ((x - 0.3) ** 2 + (y - 0.4) ** 2)) - np.exp(-100 * ((x - 0.7) ** 2 + (y - 0.7) ** 2))
    return matrix, charges * 100 / (size + 1) ** 2


class DistributedMatrix:
    """A square matrix of which each rank of `comm` has some rows; all ranks make it together.

    Args:
        rows: Those from `starts[rank]` to `starts[rank + 1]`: a CSR matrix of SciPy with all columns.
    """

    def __init__(self, comm, xp, sparse, rows, starts):
        begin, end = starts[comm.rank], starts[comm.rank + 1]
        needed = np.unique(rows.indices[(rows.indices < begin) | (rows.indices >= end)]).astype(np.int64)
        owners = np.searchsorted(starts, needed, side="right") - 1
        from_rank = np.bincount(owners, minlength=comm.nranks).tolist()  # how many entries come from each rank

        # Every rank tells the others what it needs of them: first how much, then which entries.
        to_rank = xp.empty(comm.nranks, np.int64)
        comm.all_to_all(xp.asarray(from_rank), to_rank)
        to_rank = to_rank.tolist()
        wanted = xp.empty(sum(to_rank), np.int64)
        comm.all_to_all_v(xp.asarray(needed), wanted, from_rank, to_rank)

        self.picked = wanted - begin
        self.outgoing, self.incoming = xp.empty(sum(to_rank)), xp.empty(sum(from_rank))
        self.exchange = comm.all_to_all_v_init(self.outgoing, self.incoming, to_rank, from_rank)
        self.inner = sparse.csr_matrix(rows[:, begin:end])
        self.outer = sparse.csr_matrix(rows[:, needed]) if len(needed) else None

    def __matmul__(self, x):
        """This rank's part of the product with a vector, of which `x` is this rank's part."""
        self.outgoing[:] = x[self.picked]
        self.exchange.start()
        product = self.inner @ x  # needs nothing of the others
        self.exchange.wait()
        return product if self.outer is None else product + self.outer @ self.incoming


def solve(matrix, b, dot, limit):
    """Conjugate gradients: the solution and, after each iteration, the residual relative to `b`.

    `dot` gives an array of one element, so that with CuPy only the test for the end waits for the GPU. On all ranks it
    gives the same bits, so they all stop after the same iteration.
    """
    x, r, p = 0 * b, b.copy(), b.copy()
    rr = bb = dot(r, r)
    history = [1.0]
    while history[-1] > TOLERANCE and len(history) <= limit:
        product = matrix @ p
        alpha = rr / dot(p, product)
        x += alpha * p
        r -= alpha * product
        rr, before = dot(r, r), rr
        p = r + (rr / before) * p
        history.append(float((rr / bb)[0]) ** 0.5)
    return x, history


def solve_distributed(comm, xp, sparse, size, starts):
    """Solve on all ranks: the solution in host memory, on rank 0 only, and the residuals."""
    rows, b = poisson(size, starts[comm.rank], starts[comm.rank + 1])
    matrix = DistributedMatrix(comm, xp, sparse, rows, starts)

    def dot(v, w):
        total = (v @ w).reshape(1)
        comm.all_reduce(total)
        return total

    part, history = solve(matrix, xp.asarray(b), dot, 10 * size)
    x = xp.empty(starts[-1]) if comm.rank == 0 else None
    comm.gather_v(part, x, np.diff(starts).tolist(), root=0)
    return x if xp is np or x is None else xp.asnumpy(x), history


def draw(path, x, history, history_alone, starts, topology):
    """Write a picture of the residuals and of the solution, with each rank's part in the colour of its cluster."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(history_alone, color="#CCCCCC", linewidth=6, label="one process")
    left.semilogy(history, color="black", linewidth=1.5, label=f"{topology.nranks} ranks")
    left.set(xlabel="iteration", ylabel="residual / right-hand side", title="Convergence")
    left.legend()
    size, highest = math.isqrt(len(x)), abs(x).max()
    figure.colorbar(right.imshow(x.reshape(size, size), cmap="PiYG", vmin=-highest, vmax=highest))
    right.set(xlabel="column", ylabel="row", title="Solution, and who computed it")
    for rank, (begin, end) in enumerate(pairwise(starts)):
        cluster = topology.cluster_of(rank)
        colour = COLOURS[topology.clusters.index(cluster) % len(COLOURS)]
        right.axhline(end / size - 0.5, color="grey", linewidth=0.8)
        middle = 0.02 * size, (begin + end) / 2 / size - 0.5
        right.text(*middle, f"rank {rank}, {cluster.name}", color="white", backgroundcolor=colour, va="center")
    figure.savefig(path)


def main(arguments=None) -> int:
    """Run the job on this rank; 0 if the result is that of one process, on every rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="points on each side of the square")
    parser.add_argument("--plot", metavar="PATH", help="draw the result into this file: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    size = options.size

    with hetcomm.init() as comm:
        say = print if comm.rank == 0 else lambda *_: None
        xp, sparse = array_library(comm.topology.cluster_of(comm.rank).vendor)
        if size < 1 or size * size < comm.nranks:
            parser.error(f"{comm.nranks} ranks need --size {math.isqrt(comm.nranks - 1) + 1} or more")
        starts = [size * size * rank // comm.nranks for rank in range(comm.nranks + 1)]
        for cluster in comm.topology.clusters:
            say(f"cluster {cluster.name}: vendor {cluster.vendor}, ranks {[*cluster.ranks]}")
        say(f"{size * size} unknowns; rank 0 computes with {xp.__name__}")

        x, history = solve_distributed(comm, xp, sparse, size, starts)
        for number in range(0, len(history), max(1, len(history) // 10)):
            say(f"  iteration {number:4}: residual {history[number]:.3e}")

        wrong = xp.zeros(1)
        if comm.rank == 0:
            matrix, b = poisson(size, 0, size * size)
            alone, history_alone = solve(matrix, b, lambda v, w: (v @ w).reshape(1), 10 * size)
            say(f"{len(history) - 1} iterations, and {len(history_alone) - 1} in one process")
            differences = {
                "difference from the solution of one process": abs(x - alone).max(),
                "residual": np.linalg.norm(b - matrix @ x) / np.linalg.norm(b),
            }
            for name, difference in differences.items():
                good = difference <= ALLOWED  # which a NaN is not
                say(f"{'ok   ' if good else 'WRONG'} {name}: {difference:.1e}, allowed {ALLOWED:.0e}")
                wrong += not good
        comm.broadcast(wrong, root=0)
    if options.plot and x is not None:
        draw(options.plot, x, history, history_alone, starts, comm.topology)
        say(f"picture: {options.plot}")
    return 1 if wrong[0] else 0


if __name__ == "__main__":
    sys.exit(main())
