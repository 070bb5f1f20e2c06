"""Spread heat over a square plate that is cut into a block for each rank, and prove that it went right.

    python examples/heat.py --plot heat.png                                                 # one process
    mpirun -n 2 -x HETCOMM_VENDOR=mpi    python examples/heat.py --plot heat.png : \\
           -n 2 -x HETCOMM_VENDOR=oneccl python examples/heat.py --plot heat.png            # two clusters, two vendors

This is the heat equation, in explicit steps with a five-point stencil. A point needs its four neighbours, so in each
step the ranks exchange the outermost rows and columns of their blocks, and meanwhile work on the insides. Ranks with a
GPU compute with CuPy, the others with NumPy; it is the same code. At the end rank 0 repeats it alone and compares.
"""

from __future__ import annotations

import argparse
import math
import sys
from importlib.util import find_spec

import numpy as np

import hetcomm

RATE = 0.2  # how far a step moves a point towards its neighbours; above 0.25 the scheme is unstable
ALLOWED = 1e-10  # difference from one process
COLOURS = ("#56B4E9", "#F0E442", "#009E73", "#CC79A7")  # of the clusters, in the picture


def array_library(vendor):
    """CuPy on a rank that has a GPU and whose vendor takes its arrays, else NumPy."""
    if vendor in ("nccl", "rccl", "ucx") and find_spec("cupy"):
        import cupy

        if cupy.is_available():
            return cupy
    return np


def cut(size, parts):
    """Divide `size` points into parts that differ by one point at most."""
    return [slice(size * part // parts, size * (part + 1) // parts) for part in range(parts)]


def initial(xp, rows, columns, size):
    """The temperatures at the start, of a block and the points around it: a hot wall above, and two hot spots."""
    y = xp.arange(rows.start, rows.stop + 2)[:, None] / (size + 1)
    x = xp.arange(columns.start, columns.stop + 2)[None, :] / (size + 1)
    spots = xp.exp(-50 * ((x - 0.3) ** 2 + (y - 0.6) ** 2)) + xp.exp(-90 * ((x - 0.7) ** 2 + (y - 0.5) ** 2))
    return xp.where(y == 0, 1.0, spots)


def advance(u, new, top, bottom, left, right):
    """One step of the rows from `top` to `bottom` and the columns from `left` to `right`."""
    here = u[top:bottom, left:right]
    beside = u[top:bottom, left - 1 : right - 1] + u[top:bottom, left + 1 : right + 1]
    above_and_below = u[top - 1 : bottom - 1, left:right] + u[top + 1 : bottom + 1, left:right]
    new[top:bottom, left:right] = here + RATE * (beside + above_and_below - 4 * here)


def neighbours(rank, down, across):
    """Of each neighbour: its rank, the part of this block that it needs, and where to put what comes from it."""
    (i, j), inner = divmod(rank, across), slice(1, -1)
    if i > 0:
        yield rank - across, (1, inner), (0, inner)
    if i < down - 1:
        yield rank + across, (-2, inner), (-1, inner)
    if j > 0:
        yield rank - 1, (inner, 1), (inner, 0)
    if j < across - 1:
        yield rank + 1, (inner, -2), (inner, -1)


def step(comm, xp, u, new, sides):
    """One step of this rank's block, from `u` to `new`, which have the points around it too."""
    height, width = u.shape
    with comm.group():  # when it ends, all messages start together
        works = [
            comm.send_recv(xp.ascontiguousarray(u[edge]), buffer, peer, async_op=True)
            for peer, edge, _, buffer in sides
        ]
    advance(u, new, 2, height - 2, 2, width - 2)  # needs nothing of the neighbours
    for work, (_, _, halo, buffer) in zip(works, sides, strict=True):
        work.wait()
        u[halo] = buffer
    advance(u, new, 1, 2, 1, width - 1)
    advance(u, new, height - 2, height - 1, 1, width - 1)
    advance(u, new, 2, height - 2, 1, 2)
    advance(u, new, 2, height - 2, width - 2, width - 1)


def largest_change(u, new):
    """How far the points of a block have moved; not those around it, which others compute."""
    return abs(new - u)[1:-1, 1:-1].max()


def spread(comm, xp, block, sides, size, steps, say):
    """All steps on this rank: its block at the end, and the largest change of the last step on any rank."""
    u = initial(xp, *block, size)
    new, change = u.copy(), xp.empty(1)
    sides = [(peer, edge, halo, xp.empty_like(u[halo])) for peer, edge, halo in sides]
    for number in range(1, steps + 1):
        step(comm, xp, u, new, sides)
        if number == steps or number % max(1, steps // 10) == 0:
            change[0] = largest_change(u, new)
            comm.all_reduce(change, op="max")
            say(f"  step {number:5}: largest change {float(change[0]):.3e}")
        u, new = new, u
    return xp.ascontiguousarray(u[1:-1, 1:-1]), float(change[0])


def spread_alone(size, steps):
    """The same, in one process and with NumPy."""
    u = initial(np, slice(0, size), slice(0, size), size)
    new = u.copy()
    for _ in range(steps):
        advance(u, new, 1, size + 1, 1, size + 1)
        u, new = new, u
    return u[1:-1, 1:-1], largest_change(u, new)


def gather(comm, xp, block, blocks, size):
    """The whole plate, in host memory of rank 0; None elsewhere."""
    counts = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks]
    pieces = xp.empty(size * size) if comm.rank == 0 else None
    comm.gather_v(block, pieces, counts, root=0)
    if pieces is None:
        return None
    plate, pieces = np.empty((size, size)), pieces if xp is np else xp.asnumpy(pieces)
    for (rows, columns), piece in zip(blocks, np.split(pieces, np.cumsum(counts[:-1])), strict=True):
        plate[rows, columns] = piece.reshape(rows.stop - rows.start, -1)
    return plate


def draw(path, plate, blocks, topology):
    """Write a picture of the plate, with each rank's block framed in the colour of its cluster."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="column", ylabel="row", title="Temperature, and who computed it")
    figure.colorbar(axes.imshow(plate, cmap="inferno"), label="temperature")
    for rank, (rows, columns) in enumerate(blocks):
        cluster = topology.cluster_of(rank)
        colour = COLOURS[topology.clusters.index(cluster) % len(COLOURS)]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        corner = columns.start, rows.start
        axes.add_patch(Rectangle(corner, width - 1, height - 1, fill=False, edgecolor=colour, linewidth=1.5))
        middle = columns.start + width / 2, rows.start + height / 2
        axes.text(*middle, f"rank {rank}\n{cluster.name}", color=colour, ha="center", va="center")
    figure.savefig(path)


def main(arguments=None) -> int:
    """Run the job on this rank; 0 if the result is that of one process, on every rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=200, help="points on each side of the plate")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plot", metavar="PATH", help="draw the plate into this file: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    size, steps = options.size, options.steps

    with hetcomm.init() as comm:
        say = print if comm.rank == 0 else lambda *_: None
        xp = array_library(comm.topology.cluster_of(comm.rank).vendor)
        down = max(n for n in range(1, math.isqrt(comm.nranks) + 1) if comm.nranks % n == 0)
        across = comm.nranks // down
        if size < across or steps < 1:
            parser.error(f"{comm.nranks} ranks need --size {across} or more, and --steps 1 or more")
        blocks = [(rows, columns) for rows in cut(size, down) for columns in cut(size, across)]
        for cluster in comm.topology.clusters:
            say(f"cluster {cluster.name}: vendor {cluster.vendor}, ranks {[*cluster.ranks]}")
        say(f"{size} x {size} points in {down} x {across} blocks, {steps} steps; rank 0 computes with {xp.__name__}")

        block, change = spread(comm, xp, blocks[comm.rank], neighbours(comm.rank, down, across), size, steps, say)
        plate = gather(comm, xp, block, blocks, size)

        wrong = xp.zeros(1)
        if comm.rank == 0:
            plate_alone, change_alone = spread_alone(size, steps)
            differences = {"temperature": abs(plate - plate_alone).max(), "last change": abs(change - change_alone)}
            for name, difference in differences.items():
                good = difference <= ALLOWED  # which a NaN is not
                say(f"{'ok   ' if good else 'WRONG'} {name}: {difference:.1e} from one process, allowed {ALLOWED:.0e}")
                wrong += not good
        comm.broadcast(wrong, root=0)
    if options.plot and plate is not None:
        draw(options.plot, plate, blocks, comm.topology)
        say(f"picture: {options.plot}")
    return 1 if wrong[0] else 0


if __name__ == "__main__":
    sys.exit(main())
