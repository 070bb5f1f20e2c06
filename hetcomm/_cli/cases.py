"""What one line of a benchmark measures: sizes, inputs, and the result that is right, in nccl-tests' conventions.

==================================  ============================  ==============================  ====================
collective                          size                          count                           busbw / algbw
==================================  ============================  ==============================  ====================
all_reduce                          vector of each rank           its elements                    2(n-1)/n
reduce, broadcast                   vector                        its elements                    1
scan, exscan                        vector of each rank           its elements                    1
all_gather, gather                  all blocks together           elements of one block           (n-1)/n
reduce_scatter, scatter             all blocks together           elements of one block           (n-1)/n
all_to_all                          all blocks of one rank        elements of one block           (n-1)/n
send_recv                           message of each rank          its elements                    1
==================================  ============================  ==============================  ====================

algbw is size over time. A size that the blocks do not divide is rounded down. In send_recv every rank sends to the next
one and receives from the one before. (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md)

Every element is checked (`hetcomm._cli.patterns` says against what).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from hetcomm._cli import patterns
from hetcomm._cli.patterns import PIECE, Array
from hetcomm._cli.units import format_nbytes
from hetcomm._conformance.reference import numpy_dtype
from hetcomm.errors import UsageError
from hetcomm.job.shared import shared_empty
from hetcomm.schedule.collective import Collective, CollectiveKind, Part
from hetcomm.types import DataType, ReduceKind

__all__ = ["NAMES", "Arrays", "Case", "sizes", "touch"]

SEND_RECV = "send_recv"
NAMES = (*(kind.value for kind in CollectiveKind), SEND_RECV)
"""What can be measured."""

_POISON = 0xA5  # what outputs hold before a checked call
_MANY_SIZES = 10_000


def sizes(begin: int, end: int, factor: int, step: int | None) -> list[int]:
    """The sizes in bytes from `begin` to `end`: multiplied by `factor`, or `step` further each time.

    Raises:
        UsageError: There are none, or no end of them.
    """
    if begin > end:
        raise UsageError(
            f"sizes from {begin} to {end} bytes are none", remedy="Give --end a size of at least that of --begin."
        )
    if begin == end:
        return [begin]
    if step is not None:
        if step < 1 or (end - begin) // step >= _MANY_SIZES:
            raise UsageError(
                f"--step {step} from {begin} to {end} bytes makes too many sizes",
                remedy=f"Use one that makes at most {_MANY_SIZES}.",
            )
        return list(range(begin, end + 1, step))
    if factor < 2:
        raise UsageError(f"--factor {factor} does not get on", remedy="Use 2 or more, or --step.")
    if begin < 1:
        raise UsageError(f"no factor gets on from {begin} bytes", remedy="Begin with 1 byte at least, or use --step.")
    found = [begin]
    while found[-1] * factor <= end:
        found.append(found[-1] * factor)
    return found


@dataclass(frozen=True, slots=True)
class Case:
    """One collective at one size.

    Attributes:
        name: One of `NAMES`.
        nranks: Ranks of the job.
        count: Elements as nccl-tests counts them; see the table.
        dtype: Their type.
        op: The reduction, where there is one.
        root: The root, where there is one.
        in_place: Input and output are one buffer, as `Collective` says.
    """

    name: str
    nranks: int
    count: int
    dtype: DataType
    op: ReduceKind | None
    root: int | None
    in_place: bool

    @classmethod
    def of(
        cls, name: str, nranks: int, nbytes: int, dtype: DataType, op: ReduceKind, root: int, in_place: bool
    ) -> Case:
        """The case of at most `nbytes` bytes; `op` and `root` count where the collective has them.

        Raises:
            UsageError: The collective has no such form; or the root is no rank, or the op has no meaning for the dtype.
        """
        if name == SEND_RECV:
            if in_place:
                raise UsageError("send_recv has no in-place form", remedy="Leave out --in-place.")
            return cls(name, nranks, nbytes // dtype.itemsize, dtype, None, None, False)
        kind = CollectiveKind(name)
        blocks = nranks if kind.has_blocks else 1
        made = cls(
            name,
            nranks,
            nbytes // (dtype.itemsize * blocks),
            dtype,
            op if kind.reduces else None,
            root if kind.has_root else None,
            in_place or kind is CollectiveKind.BROADCAST,
        )
        made._collective()  # raises
        return made

    @property
    def collective(self) -> Collective | None:
        """What it is, unless it is send_recv."""
        return None if self.name == SEND_RECV else self._collective()

    def _collective(self) -> Collective:
        kind = CollectiveKind(self.name)
        return Collective(kind, self.nranks, self.count, self.dtype, op=self.op, root=self.root, in_place=self.in_place)

    @property
    def nbytes(self) -> int:
        """Its size."""
        collective = self.collective
        blocks = self.nranks if collective is not None and collective.kind.has_blocks else 1
        return self.count * blocks * self.dtype.itemsize

    @property
    def bus_factor(self) -> float:
        """busbw over algbw."""
        collective = self.collective
        return 1.0 if collective is None else collective.kind.row.bus_factor(self.nranks)

    def takes_part(self, rank: int) -> tuple[bool, bool]:
        """Whether `rank` has an input, and whether it gets an output."""
        collective = self.collective
        return (True, True) if collective is None else (collective.passes(rank), collective.gets(rank))

    def counts(self, rank: int) -> tuple[int, int]:
        """Elements that `rank` needs as input and as output buffer; in place the second is the only one."""
        collective = self.collective
        if collective is None:
            return self.count, self.count
        if self.in_place:
            return 0, collective.buffer_count(rank)
        return collective.in_count(rank), collective.out_count(rank)

    def parts(self, rank: int) -> Iterator[Part]:
        """What the output of `rank` is made of."""
        collective = self.collective
        if collective is not None:
            yield from collective.meaning(rank)
        else:
            source = (rank - 1) % self.nranks
            yield Part(0, self.count, range(source, source + 1), 0)

    def values(self, rank: int, start: int, stop: int) -> Array:
        """Elements `start` to `stop` of the input of `rank`, at most `PIECE`."""
        return patterns.values(self.dtype, self.op, self.nranks, rank, start, stop)

    def expected(self, rank: int) -> Iterator[tuple[int, Array]]:
        """The output of `rank` as (where it begins, elements), in pieces."""
        for part in self.parts(rank):
            for start in range(0, part.count, PIECE):
                stop = min(start + PIECE, part.count)
                first, last = part.source_offset + start, part.source_offset + stop
                right = patterns.combined(self.dtype, self.op, self.nranks, part.sources, first, last)
                yield part.offset + start, right


class Arrays:
    """The buffers of one rank, large enough for every case; all contenders use the same.

    Args:
        cases: All of one dtype.
        rank: This process's.
        sharing: How many ranks share this host's memory.
        shared: Whether the buffers are in memory that they can see.

    Raises:
        UsageError: There is not that much memory.
    """

    def __init__(self, cases: Sequence[Case], rank: int, sharing: int = 1, shared: bool = False) -> None:
        self._rank = rank
        counts = [case.counts(rank) for case in cases]
        dtype = numpy_dtype(cases[0].dtype)
        largest = [max(count) for count in zip(*counts, strict=True)]
        free, wanted = _free(), sum(largest) * dtype.itemsize * sharing
        if wanted > free:
            raise UsageError(
                f"the buffers of {sharing} ranks on this host take {format_nbytes(wanted)}, and "
                f"{format_nbytes(free)} are free",
                remedy="Give a smaller --end, or fewer ranks.",
                rank=rank,
            )
        make = shared_empty if shared else numpy.empty
        self._in, self._out = (make(count, dtype) for count in largest)

    def of(self, case: Case) -> tuple[Array, Array]:
        """The input and the output of `case`; in place the second is the one buffer."""
        in_count, out_count = case.counts(self._rank)
        return self._in[:in_count], self._out[:out_count]

    def fill(self, case: Case) -> None:
        """Give this rank its input; everything else of the buffers holds garbage."""
        source, target = self.of(case)
        target.view(numpy.uint8)[:] = _POISON
        collective = case.collective
        if collective is not None and case.in_place:
            offset = collective.in_offset(self._rank)
            source = target[offset : offset + collective.in_count(self._rank)]
        for start in range(0, len(source), PIECE):
            stop = min(start + PIECE, len(source))
            source[start:stop] = case.values(self._rank, start, stop)

    def touched(self, case: Case) -> tuple[Array, Array]:
        """What a program would write before a call, and what it would read after it."""
        source, target = self.of(case)
        return (target if case.in_place else source), target

    def output(self, case: Case) -> Array:
        """Where the output of `case` lies, if there is one on this rank."""
        target, collective = self.of(case)[1], case.collective
        if collective is None:
            return target
        offset = collective.out_offset(self._rank)
        return target[offset : offset + collective.out_count(self._rank)]

    def wrong(self, case: Case, result: Array) -> int:
        """How many elements of `result`, which lies like the output, are not what they should be."""
        return sum(
            int(numpy.count_nonzero(result[start : start + len(right)] != right))
            for start, right in case.expected(self._rank)
        )


def touch(written: Array, read: Array) -> None:
    """Write every byte of the one, as it is, and read every byte of the other."""
    content = written.view(numpy.uint8)
    numpy.bitwise_or(content, 0, out=content)
    numpy.bitwise_or.reduce(read.view(numpy.uint8))


def _free() -> int:
    """Bytes of memory that this host can still give, as Linux estimates it."""
    table = Path("/proc/meminfo")
    for line in table.read_text(encoding="ascii").splitlines() if table.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize
