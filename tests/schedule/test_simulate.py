"""The simulator against cases worked out by hand, against packets, and against what must hold of any schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.dataflow import dependencies, match, vendor_groups
from hetcomm.schedule.order import completion_order
from hetcomm.schedule.simulate import Path, Port, makespan, simulate
from hetcomm.schedule.steps import CommId, CommRole, Copy, Fill, Recv, Reduce, Schedule, Send, Slice, Step, VendorCall
from hetcomm.schedule.timeline import Span
from hetcomm.types import DataType, ReduceKind

from .handmade import OUT, SCRATCH, WORLD, build, collective, examples

LATENCY = 0.5


@dataclass(frozen=True)
class Net:
    """Costs in which one element, which is a byte, takes a second wherever nothing else is said."""

    out: Mapping[int, float] = field(default_factory=dict)
    into: Mapping[int, float] = field(default_factory=dict)
    latencies: Mapping[int, float] = field(default_factory=dict)
    latency: float = LATENCY
    overhead: float = 0.0
    call: float = 3.0
    per_byte: float = 1.0
    keys: bool = True
    eager: int = 1000

    def path(self, sender: int, receiver: int) -> Path:
        ends = Port(sender if self.keys else None, self.out.get(sender, 1.0))
        return Path(
            ends,
            Port(receiver if self.keys else None, self.into.get(receiver, 1.0)),
            self.latencies.get(sender, self.latency),
            self.eager,
        )

    def vendor(self, comm: CommId, collective: Collective) -> float:
        return self.call

    def local(self, step: Copy | Fill | Reduce, nbytes: int) -> float:
        return nbytes * self.per_byte


def job(*steps: list[Step], communicators: dict[CommId, tuple[int, ...]] | None = None) -> Schedule:
    """Steps of each rank, for no collective in particular; an element is a byte."""
    what = collective("broadcast", len(steps), 1000, root=0, dtype=DataType.UINT8)
    return build(what, steps, 1000, communicators)


def at(offset: int, count: int = 10) -> Slice:
    return Slice(SCRATCH, offset, count)


def times(schedule: Schedule, net: Net) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(start, began, end) of each step."""
    timeline = simulate(schedule, net)
    return {(span.rank, span.index): (span.start, span.busy_from, span.end) for span in timeline.spans}


def ends(schedule: Schedule, net: Net) -> dict[tuple[int, int], float]:
    return {step: end for step, (_, _, end) in times(schedule, net).items()}


def test_two_messages_of_one_port_take_turns() -> None:
    found = times(job([Send(at(0), 1), Send(at(10), 2)], [Recv(at(0), 0)], [Recv(at(0), 0)]), Net())
    assert found[0, 0] == (0, 0, 10)
    assert found[0, 1] == (0, 10, 20)
    assert found[1, 0] == (0, 0.5, 10.5)
    assert found[2, 0] == (0, 10.5, 20.5)


def test_without_keys_they_do_not() -> None:
    schedule = job([Send(at(0), 1), Send(at(10), 2)], [Recv(at(0), 0)], [Recv(at(0), 0)])
    assert set(ends(schedule, Net(keys=False)).values()) == {10, 10.5}


def test_both_ways_at_once() -> None:
    assert makespan(job([Send(at(0), 1), Recv(at(10), 1)], [Send(at(0), 0), Recv(at(10), 0)]), Net()) == 10.5


def test_messages_that_arrive_together_share_the_port() -> None:
    schedule = job([Recv(at(0), 1), Recv(at(10), 2)], [Send(at(0), 0)], [Send(at(0), 0)])
    found = ends(schedule, Net())
    assert found[1, 0] == found[2, 0] == 10
    assert found[0, 0] == found[0, 1] == 20.5


def test_a_fast_port_takes_slow_messages_at_once() -> None:
    recvs: list[Step] = [Recv(at(10 * peer), peer) for peer in range(1, 5)]
    assert makespan(job(recvs, *([Send(at(0), 0)] for _ in range(4))), Net(into={0: 4.0})) == 10.5


def test_a_slow_port_holds_no_sender_back() -> None:
    found = ends(job([Send(at(0), 1)], [Recv(at(0), 0)]), Net(out={0: 10.0}))
    assert found == {(0, 0): 1, (1, 0): 10.5}


@pytest.mark.parametrize(
    ("out", "into", "end"), [(math.inf, 1.0, 10.5), (1.0, math.inf, 10.5), (math.inf,) * 2 + (0.5,)]
)
def test_infinite_bandwidth(out: float, into: float, end: float) -> None:
    assert makespan(job([Send(at(0), 1)], [Recv(at(0), 0)]), Net(out={0: out}, into={1: into})) == end


def test_chunks_overlap_on_their_way() -> None:
    chunks = [at(5 * number, 5) for number in range(8)]
    relay: list[Step] = [step for chunk in chunks for step in (Recv(chunk, 0), Send(chunk, 2))]
    schedule = job([Send(chunk, 1) for chunk in chunks], relay, [Recv(chunk, 1) for chunk in chunks])
    assert makespan(schedule, Net()) == 9 * 5 + 2 * LATENCY


def test_a_late_receive() -> None:
    busy: list[Step] = [Fill(at(0, 30), ReduceKind.SUM), Recv(at(0), 0)]
    found = times(job([Send(at(0), 1)], busy), Net())
    assert found[0, 0] == (0, 0, 10)
    assert found[1, 1] == (30, 30, 30)


def test_a_receive_that_is_late_for_the_first_byte_only() -> None:
    found = times(job([Send(at(0), 1)], [Fill(at(0, 5), ReduceKind.SUM), Recv(at(0), 0)]), Net())
    assert found[1, 1] == (5, 5, 10.5)


def test_a_long_message_waits_for_its_receive() -> None:
    busy: list[Step] = [Fill(at(0, 30), ReduceKind.SUM), Recv(at(0), 0)]
    schedule = job([Send(at(0), 1)], busy)
    assert times(schedule, Net(eager=10))[0, 0] == (0, 0, 10)
    found = times(schedule, Net(eager=9))
    assert found[0, 0] == (0, 30, 40)
    assert found[1, 1] == (30, 30.5, 40.5)


def test_a_message_that_waits_lets_others_pass() -> None:
    late: list[Step] = [Fill(at(0, 5), ReduceKind.SUM), Recv(at(0), 0)]
    schedule = job([Send(at(0), 1), Send(at(10), 2), Send(at(20), 2)], late, [Recv(at(0), 0), Recv(at(10), 0)])
    found = times(schedule, Net(eager=9))
    assert found[0, 1] == (0, 0, 10)
    assert found[0, 0] == (0, 10, 20)  # its turn comes before that of the one started later
    assert found[0, 2] == (0, 20, 30)


def vendor(comm: CommId, nranks: int, part: Slice) -> VendorCall:
    return VendorCall(comm, collective("all_reduce", nranks, part.count, "sum", in_place=True), None, part)


def test_a_vendor_call_waits_for_all() -> None:
    late: list[Step] = [Fill(at(0, 5), ReduceKind.SUM), vendor(WORLD, 2, at(0))]
    found = times(job([vendor(WORLD, 2, at(0))], late, communicators={WORLD: (0, 1)}), Net())
    assert found[0, 0] == (0, 5, 8)
    assert found[1, 1] == (5, 5, 8)


def test_vendor_calls_of_a_rank_run_one_after_another() -> None:
    other = CommId("world", CommRole.BORDER)
    first: list[Step] = [vendor(WORLD, 2, at(0)), vendor(other, 2, at(10))]
    schedule = job(
        first, [vendor(WORLD, 2, at(0))], [vendor(other, 2, at(0))], communicators={WORLD: (0, 1), other: (0, 2)}
    )
    found = times(schedule, Net())
    assert found[0, 1] == (0, 3, 6)
    assert found[2, 0] == (0, 3, 6)


def test_local_steps_keep_the_cpu_of_their_rank() -> None:
    two: list[Step] = [Fill(at(0), ReduceKind.SUM), Copy(at(10), at(20)), Send(at(30), 1)]
    found = times(job(two, [Reduce(at(0), at(10), ReduceKind.SUM), Recv(at(20), 0)]), Net())
    assert found[0, 0] == (0, 0, 10)
    assert found[0, 1] == (10, 10, 20)
    assert found[0, 2] == (20, 20, 30)
    assert found[1, 0] == (0, 0, 10)


def test_each_step_costs_its_start() -> None:
    schedule = job([Send(at(0), 1), Send(at(10), 1)], [Recv(at(0), 0), Recv(at(10), 0)])
    found = times(schedule, Net(overhead=2.0, latency=0.0))
    assert found[0, 0] == (0, 2, 12)
    assert found[0, 1] == (2, 12, 22)
    assert found[1, 1] == (2, 12, 22)


def test_empty_messages_cost_nothing() -> None:
    steps: list[Step] = [Send(at(0, 0), 1), Copy(at(0), at(0)), Fill(at(5, 0), ReduceKind.SUM)]
    assert makespan(job(steps, [Recv(at(0, 0), 0)]), Net(overhead=2.0)) == 0


def test_nothing_to_do() -> None:
    assert makespan(job([], []), Net()) == 0
    assert simulate(job([], []), Net()).spans == ()


def test_a_deadlock_is_an_error() -> None:
    with pytest.raises(ScheduleError, match="deadlock"):
        makespan(job([Recv(at(0), 1), Send(at(0), 1)], [Recv(at(0), 0), Send(at(0), 0)]), Net())


def test_a_message_nobody_receives_is_an_error() -> None:
    with pytest.raises(ScheduleError, match="has no partner"):
        simulate(job([Send(at(0), 1)], []), Net())


# ---- against packets

FLOWS = st.lists(
    st.tuples(st.integers(1, 400), st.sampled_from([0.5, 1.0, 3.0, 8.0]), st.integers(0, 200)), min_size=1, max_size=6
)


@given(flows=FLOWS, bandwidth=st.sampled_from([0.7, 2.0, 5.0]))
def test_the_fluid_is_the_limit_of_packets(flows: list[tuple[int, float, int]], bandwidth: float) -> None:
    """Bytes of all senders arrive one by one at one port, which serves them in order of arrival."""
    senders = range(1, len(flows) + 1)
    recvs: list[Step] = [Recv(Slice(SCRATCH, 400 * (peer - 1), flows[peer - 1][0]), peer) for peer in senders]
    schedule = job(recvs, *([Send(Slice(SCRATCH, 0, flow[0]), 0)] for flow in flows))
    net = Net(
        out={peer: flows[peer - 1][1] for peer in senders},
        latencies={peer: flows[peer - 1][2] for peer in senders},
        into={0: bandwidth},
    )
    packets = [
        (latency + (number + 1) / rate, peer)
        for peer, (count, rate, latency) in enumerate(flows, 1)
        for number in range(count)
    ]
    free, last = 0.0, dict.fromkeys(senders, 0.0)
    for arrival, peer in sorted(packets):
        free = last[peer] = max(free, arrival) + 1 / bandwidth
    found = ends(schedule, net)
    for peer in senders:
        # Packets pass one after another, fluids in parallel: they differ by one packet of each message.
        assert abs(found[0, peer - 1] - last[peer]) <= (1 + len(flows)) / bandwidth


# ---- what holds of any schedule

NETS = st.builds(
    Net,
    out=st.dictionaries(st.integers(0, 7), st.sampled_from([0.5, 2.0, 100.0])),
    into=st.dictionaries(st.integers(0, 7), st.sampled_from([0.5, 2.0, 100.0])),
    latency=st.sampled_from([0.0, 1.0, 64.0]),
    overhead=st.sampled_from([0.0, 0.25]),
    call=st.sampled_from([64.0, 300.0]),
    per_byte=st.sampled_from([0.0, 0.125]),
    eager=st.sampled_from([0, 16, 1000]),
)
SCHEDULES = st.builds(
    examples,
    nranks=st.integers(2, 8),
    count=st.integers(0, 40),
    op=st.sampled_from(["sum", "avg"]),
    root=st.integers(0, 1),
    in_place=st.booleans(),
).flatmap(st.sampled_from)


@given(schedule=SCHEDULES, net=NETS)
def test_what_every_timeline_keeps(schedule: Schedule, net: Net) -> None:
    timeline = simulate(schedule, net)
    spans = {(span.rank, span.index): span for span in timeline.spans}
    assert spans.keys() == {(p.rank, index) for p in schedule.programs for index in range(len(p.steps))}
    assert makespan(schedule, net) == max((span.end for span in timeline.spans), default=0.0)
    for program in schedule.programs:
        for index, order in enumerate(dependencies(program)):
            here = spans[program.rank, index]
            assert all(spans[program.rank, before].end <= here.start for before in order.complete)
            assert all(spans[program.rank, before].start <= here.start for before in order.started)
    for group in vendor_groups(schedule).values():
        members = [spans[step] for step in group]
        assert len({(span.busy_from, span.end) for span in members}) == 1
        assert members[0].end == members[0].busy_from + net.call
    check_messages(schedule, net, spans)


def check_messages(schedule: Schedule, net: Net, spans: Mapping[tuple[int, int], Span]) -> None:
    """No message is quicker than its path, and no port than its bandwidth."""
    out_load: defaultdict[int, float] = defaultdict(float)
    in_load: defaultdict[int, float] = defaultdict(float)
    last = max((span.end for span in spans.values()), default=0.0)
    itemsize = schedule.collective.dtype.itemsize
    for (rank, index), partner in match(schedule).items():
        step = schedule.programs[rank].steps[index]
        if not isinstance(step, Send) or not step.src.count:
            continue
        path = net.path(rank, partner[0])
        leaves, passes = (step.src.count * itemsize / port.bandwidth for port in (path.out_port, path.in_port))
        out_load[rank] += leaves
        in_load[partner[0]] += passes
        send, recv = spans[rank, index], spans[partner]
        assert send.end == pytest.approx(send.busy_from + leaves)
        assert recv.end >= (send.busy_from + path.latency + max(leaves, passes)) * (1 - 1e-12)
    busiest = max([0.0, *out_load.values(), *in_load.values()])
    assert last >= busiest * (1 - 1e-12)


@given(schedule=SCHEDULES, net=NETS)
def test_no_schedule_is_quicker_than_its_latencies(schedule: Schedule, net: Net) -> None:
    if schedule.collective.count >= schedule.collective.nranks:  # no empty messages
        assert makespan(schedule, net) >= completion_order(schedule).rounds * min(net.latency, net.call)


@given(schedule=SCHEDULES, net=NETS)
@settings(max_examples=30)
def test_twice_the_costs_take_twice_the_time(schedule: Schedule, net: Net) -> None:
    ranks = range(schedule.collective.nranks)
    double = Net(
        out={rank: net.out.get(rank, 1.0) / 2 for rank in ranks},
        into={rank: net.into.get(rank, 1.0) / 2 for rank in ranks},
        latency=2 * net.latency,
        overhead=2 * net.overhead,
        call=2 * net.call,
        per_byte=2 * net.per_byte,
        eager=net.eager,
    )
    assert makespan(schedule, double) == 2 * makespan(schedule, net)


@given(slower=st.integers(0, 3), chunks=st.integers(1, 6), net=NETS)
def test_a_chain_is_no_quicker_with_a_slower_link(slower: int, chunks: int, net: Net) -> None:
    """Where nothing overtakes anything, dearer steps never make a schedule quicker."""
    parts = [Slice(OUT, 7 * number, 7) for number in range(chunks)]
    middle: list[list[Step]] = [
        [step for part in parts for step in (Recv(part, rank - 1), Send(part, rank + 1))] for rank in (1, 2)
    ]
    schedule = job([Send(part, 1) for part in parts], *middle, [Recv(part, 2) for part in parts])
    before = makespan(schedule, net)
    for changed in (
        Net(**{**vars(net), "out": {**net.out, slower: net.out.get(slower, 1.0) / 2}}),
        Net(**{**vars(net), "into": {**net.into, slower: net.into.get(slower, 1.0) / 2}}),
        Net(**{**vars(net), "latency": net.latency + 1}),
    ):
        assert makespan(schedule, changed) >= before * (1 - 1e-12)
