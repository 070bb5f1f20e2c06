"""Train a classifier of handwritten digits on all ranks of a job, and prove that it went right.

    python examples/digits.py                                             # one process
    mpirun -n 2 -x HETCOMM_VENDOR=mpi    python examples/digits.py : \\
           -n 2 -x HETCOMM_VENDOR=oneccl python examples/digits.py        # two clusters, two vendors

Every rank holds a part of the data. In each epoch it computes the gradient of its part, `all_reduce` adds the
gradients of all ranks, and all take the same step: the training is that of one process, however many ranks there are
and whoever's library carries the data inside each cluster. At the end rank 0 repeats it alone and compares.

    hetcomm run -n 2 --vendor oneccl : -n 2 --vendor ucx -- python examples/digits.py --elastic --kill 1

With --elastic ranks may be killed meanwhile: the others divide the data anew and go on from the last epoch that was
committed, so the training is still that of one process. --kill lets a rank kill itself in the middle. With
--replace, and `hetcomm run --restarts 1`, a new process takes its seat.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import numpy as np
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import hetcomm
from hetcomm import elastic

EPOCHS = 150
SHOWN = {1, 2, 5, 10, *range(25, EPOCHS + 1, 25)}  # epochs whose accuracy is printed
HIDDEN = 48
RATE = 0.5
MOMENTUM = 0.9


def load(xp):
    """Images scaled to [0, 1] and one-hot labels, for training and for testing."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = xp.asarray(digits.data[order] / 16.0), xp.asarray(np.eye(10)[digits.target[order]])
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def initial_weights():
    """The weights of a network with one hidden layer, as one vector."""
    rng = np.random.default_rng(1)
    first = rng.normal(0, 1 / 8, (65, HIDDEN))
    second = rng.normal(0, HIDDEN**-0.5, (HIDDEN + 1, 10))
    return np.concatenate([first.ravel(), second.ravel()])


def forward(xp, weights, images):
    """The hidden layer and the probability of each digit."""
    first, second = xp.split(weights, [65 * HIDDEN])
    first, second = first.reshape(65, HIDDEN), second.reshape(HIDDEN + 1, 10)
    hidden = xp.tanh(images @ first[:-1] + first[-1])
    logits = hidden @ second[:-1] + second[-1]
    odds = xp.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True), second


def gradient(xp, weights, images, labels, out):
    """Write the sum over `images` of the gradients into `out`."""
    hidden, probability, second = forward(xp, weights, images)
    error = probability - labels
    back = (error @ second[:-1].T) * (1 - hidden**2)
    parts = (images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))
    xp.concatenate([part.ravel() for part in parts], out=out)


def accuracy(xp, weights, images, labels):
    """The fraction of `images` whose most probable digit is the right one."""
    return float((forward(xp, weights, images)[1].argmax(axis=1) == labels.argmax(axis=1)).mean())


def train(xp, state, shard, total, add_up):
    """Gradient descent in place; yields after each epoch. `add_up` makes a local gradient that of all data."""
    slope = xp.empty_like(state.weights)
    while state.epoch < EPOCHS:
        gradient(xp, state.weights, *shard, out=slope)
        add_up(slope)
        state.speed *= MOMENTUM
        state.speed -= (RATE / total) * slope
        state.weights += state.speed
        state.epoch += 1
        yield state.epoch


def describe(comm, console):
    """Print the clusters, vendors and border ranks of the job."""
    console.print(f"[bold]{comm.nranks} ranks in {len(comm.topology.clusters)} clusters")
    for cluster in comm.topology.clusters:
        ranks, border = [*cluster.ranks], [*cluster.border]
        console.print(f"  {cluster.name}: vendor {cluster.vendor}, ranks {ranks}, border ranks {border}")


def agreed(comm, numbers, op):
    """Each of `numbers` combined over all ranks."""
    array = np.array(numbers)
    comm.all_reduce(array, op=op)
    return array.tolist()


def start(xp, weights):
    """What training begins with."""
    return elastic.State(weights=weights, speed=xp.zeros_like(weights), epoch=0)


def main(argv=()) -> int:
    """Run the job on this rank; 0 if every proof held, on every rank that is left."""
    parser = argparse.ArgumentParser(description="Train a classifier of handwritten digits on all ranks of a job.")
    parser.add_argument("--elastic", action="store_true", help="go on when ranks are lost")
    parser.add_argument("--replace", action="store_true", help="with --elastic: wait for a new process in its seat")
    parser.add_argument("--kill", type=int, metavar="RANK", help="with --elastic: this rank kills itself half-way")
    args = parser.parse_args(argv)
    os.environ.setdefault("HETCOMM_INLINE_BYTES", "0")  # or messages take the place of vendors for so short a vector
    with hetcomm.init() as job, threadpool_limits(1):
        comm = job  # until ranks are lost
        first = comm.rank == 0
        console = Console(quiet=not first, highlight=False, soft_wrap=True)
        describe(comm, console)
        if comm.topology.cluster_of(comm.rank).vendor in ("nccl", "rccl"):
            import cupy as xp  # this rank has a GPU: its data lives there
        else:
            xp = np

        (images, labels), test = load(xp)
        weights = xp.asarray(initial_weights())
        if not first:
            weights[:] = 0
        if not args.elastic:  # or that is part of what elastic.run does
            comm.broadcast(weights, root=0)  # everyone starts from rank 0's
        plan = comm.explain("all_reduce", weights)
        console.print(f"\n[bold]The plan for {weights.nbytes} bytes of gradients")
        console.print(str(plan), markup=False)

        console.print("\n[bold]Training")
        state = start(xp, weights)
        victim = comm.rank == args.kill and os.environ.get("HETCOMM_LIFE", "0") == "0"

        def training(comm):
            """Train on; returns the communicator, the first epoch, and the bytes sent between clusters."""
            shard = images[comm.rank :: comm.nranks], labels[comm.rank :: comm.nranks]  # mostly of unequal sizes
            before = comm.statistics().bytes_between_clusters
            epochs = train(xp, state, shard, len(images), comm.all_reduce)
            began = state.epoch
            for epoch in track(epochs, "epochs", total=EPOCHS - began, console=console, disable=not first):
                if epoch in SHOWN:
                    console.print(f"  epoch {epoch:3}: accuracy {accuracy(xp, weights, *test):.4f}")
                if args.elastic:
                    state.commit()
                if victim and epoch == EPOCHS // 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            return comm, began, comm.statistics().bytes_between_clusters - before

        started = comm.nranks
        if args.elastic:
            comm, began, sent = elastic.run(training, comm, state, replace=args.replace)
        else:
            comm, began, sent = training(comm)
        sent, first = agreed(comm, [sent], "sum")[0], comm.rank == 0
        console.quiet = not first
        lost = started - comm.nranks

        with comm.trace() as trace:
            comm.all_reduce(weights.copy())
        console.print("\n[bold]What rank 0 did in the last epoch")
        for span in trace.timeline.spans:
            begin, end = (1e6 * (time - trace.timeline.spans[0].start) for time in (span.start, span.end))
            console.print(f"  {begin:7.0f} to {end:7.0f} us  {span.label}", markup=False)
        labels_run = [span.label for span in trace.timeline.spans]
        by_vendor = agreed(comm, [int(any(label.startswith("vendor border:") for label in labels_run))], "max")[0] > 0
        clusters = comm.topology.clusters
        libraries = [cluster for cluster in clusters if cluster.vendor != "ucx"]  # which is hetcomm itself
        due = len(clusters) > 1 and max((len(cluster.border) for cluster in libraries), default=1) > 1
        here = comm.topology.cluster_of(comm.rank)
        alone_here = len(here.border) == 1 or here not in libraries
        by_us = any(label.startswith("reduce ") for label in labels_run)

        # Rank 0 trains once more, alone, on all of the data.
        alone = xp.asarray(initial_weights())
        if first:
            for _ in train(xp, start(xp, alone), (images, labels), len(images), lambda slope: None):
                pass
        comm.broadcast(alone, root=0)

        scores = accuracy(xp, weights, *test), accuracy(xp, alone, *test)
        difference = agreed(comm, [float(abs(weights - alone).max())], "max")[0]
        bits = weights.view(xp.int64)
        lowest, highest = bits.copy(), bits.copy()
        comm.all_reduce(lowest, op="min")
        comm.all_reduce(highest, op="max")
        least = EPOCHS * plan.least_bytes_between_clusters
        proofs = {
            f"accuracy {scores[0]:.4f}, and {scores[1]:.4f} in one process": scores[0] == scores[1] > 0.95,
            "remote gradients added by the vendor wherever a cluster has two border ranks": by_vendor == due
            and (alone_here or not by_us),
            f"bytes between clusters {sent}, the least possible {least}": sent == least or began > 0,
            f"largest difference from one process {difference:.1e}, allowed 1e-12": difference < 1e-12,
            **(
                {f"rank {args.kill} was lost, {lost} of {started} seats are free": began > 0}
                if args.kill is not None
                else {}
            ),
            f"weights bit-identical on all {comm.nranks} ranks": bool((lowest == highest).all()),
        }
        held = agreed(comm, [int(proof) for proof in proofs.values()], "min")  # on every rank
        console.print("\n[bold]Proofs")
        for text, good in zip(proofs, held, strict=True):
            console.print(f"  {'[green]ok[/]   ' if good else '[red]WRONG[/]'} {text}")
        return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
