"""Executors for ranks with and without a fake device, run in turns by one thread, and calls in the order of streams."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from hetcomm._conformance.fake_vendor import touches
from hetcomm.calls.buffers import memory
from hetcomm.devices import Devices
from hetcomm.execution.execution import Execution
from hetcomm.execution.executor import Executor
from hetcomm.execution.streams import Ordering
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import CommId, Program
from hetcomm.testing import FakeArray, FakeDevice, FakeGroup, WatchedTransport
from hetcomm.topology import select
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Topology
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import Memory, MemoryKind, Number
from hetcomm.vendors.base import Operation, VendorCommunicator

from .invoke import Invocation
from .test_executor import FakeGroup as HostGroup

ROLES = ("streams", "started", "ucx", "host")
"""How a cluster works: on a device with a vendor that works in streams, with one that the host starts and polls, with
hetcomm's own programs, or on the host."""


class StartedCommunicator:
    """A communicator of a vendor on device memory whose calls the host starts and polls."""

    def __init__(self, inner: Any, device: FakeDevice) -> None:
        self.rank, self.nranks = inner.rank, inner.nranks
        self._inner, self._device = inner, device
        self._watches: list[Any] = []

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        plain = [m and Memory(m.address, m.count, m.dtype) for m in (in_memory, out_memory)]
        name = f"the started {collective.kind.value}"
        watch = self._device.engage(touches(name, self.rank, collective, in_memory, out_memory))
        self._watches.append(watch)
        return _Started(self._inner.start(collective, *plain), watch)

    def progress(self) -> None:
        pass

    def abort(self) -> None:
        self._inner.abort()
        for watch in self._watches:
            watch.over()

    def drain(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass


class _Started:
    def __init__(self, operation: Any, watch: Any) -> None:
        self._operation, self._watch = operation, watch

    def test(self) -> bool:
        if not self._operation.test():
            return False
        self._watch.over()
        return True


class DeviceRanks:
    """One job in one process; nothing in it happens but in turns, in an order that the seed decides.

    Args:
        topology: Of the job.
        roles: One for each cluster.
        seed: Of everything.
    """

    def __init__(self, topology: Topology, roles: Sequence[str], seed: int) -> None:
        self.topology = topology
        self.rng = rng = random.Random(seed)
        self.network = InprocNetwork(topology.nranks, seed=seed, max_delay=5, eager_nbytes=64)
        self.roles = {
            rank: role for cluster, role in zip(topology.clusters, roles, strict=True) for rank in cluster.ranks
        }
        self.devices = {
            rank: FakeDevice(seed + rank, name=f"device of rank {rank}")
            for rank, role in self.roles.items()
            if role != "host"
        }
        self.streams = {rank: [0, 0, device.open_stream()] for rank, device in self.devices.items()}
        self.transports: list[Any] = [
            WatchedTransport(transport, self.devices[rank]) if rank in self.devices else transport
            for rank, transport in enumerate(self.network.transports)
        ]
        self.groups: list[FakeGroup] = []
        mine: list[dict[CommId, VendorCommunicator]] = [{} for _ in range(topology.nranks)]
        for comm, members in topology.communicators().items():
            for rank, communicator in zip(members, self._communicators(members, rng), strict=False):
                mine[rank][comm] = communicator
        self.communicators = mine
        self.executors = [
            Executor(
                self.transports[rank],
                range(topology.nranks),
                rank,
                7,
                mine[rank],
                self._devices(rank),
                topology.communicators_of(topology.cluster_of(rank)),
            )
            for rank in range(topology.nranks)
        ]
        self.calls: list[list[DeviceCall]] = [[] for _ in range(topology.nranks)]
        self.obstacles: list[Any] = []
        self.with_obstacles = True  # work of users' that takes until it is removed

    def _devices(self, rank: int) -> Devices:
        devices = Devices()
        if rank in self.devices:
            devices.opened[MemoryKind.CUDA] = self.devices[rank]
        return devices

    def program(self, program: Program) -> Program:
        """What a rank runs: without a vendor its calls are written out, as `hetcomm.plans.plans` does it."""
        if self.roles[program.rank] != "ucx":
            return program
        return inline(program, self.topology.communicators_of(self.topology.cluster_of(program.rank)))

    def _communicators(self, members: Sequence[int], rng: random.Random) -> list[VendorCommunicator]:
        role, n = self.roles[members[0]], len(members)
        if role == "streams":
            group = FakeGroup(n, rng.randrange(1 << 16))
            self.groups.append(group)
            return [group.communicator(number, self.devices[rank]) for number, rank in enumerate(members)]
        if role == "ucx":
            return []
        shared = HostGroup(n, rng)
        host = [FakeCommunicatorOf(shared, number) for number in range(n)]
        if role == "host":
            return host
        return [StartedCommunicator(one, self.devices[rank]) for one, rank in zip(host, members, strict=True)]

    def call(self, number: int, mine: Invocation, factor: Number | None, program: Program | None = None) -> None:
        """Make a rank's call: its input is written before, its output read and overwritten after, on its stream."""
        self.calls[mine.rank].append(DeviceCall(self, number, mine, factor, program))

    def finish(self, turns: int = 60_000) -> None:
        """Let everything happen in random order until all is over, on the devices too.

        Raises:
            AssertionError: It came to a standstill.
        """
        for _ in range(turns):
            if all(call.over for calls in self.calls for call in calls):
                break
            self.turn()
        else:
            stuck = [call.describe() for calls in self.calls for call in calls if not call.over]
            raise AssertionError("; ".join([*stuck, *(device.describe() for device in self.devices.values())]))
        while self.obstacles:
            self.obstacles.pop().remove()
        for _ in range(10_000):
            if all(device.idle() for device in self.devices.values()):
                return
            for device in self.devices.values():
                device.step()
        raise AssertionError("; ".join(device.describe() for device in self.devices.values()))

    def turn(self) -> None:
        """Let a random rank do a random thing."""
        rank, what = self.rng.randrange(self.topology.nranks), self.rng.random()
        if what < 0.3:
            self.network.transports[rank].progress()
        elif what < 0.6 and rank in self.devices:
            self.devices[rank].step()
        elif what < 0.62 and self.obstacles:
            self.obstacles.pop(self.rng.randrange(len(self.obstacles))).remove()
        else:
            waiting = [call for call in self.calls[rank] if not call.over]
            unbegun = [call for call in waiting if call.execution is None]
            begun = [call for call in waiting if call.execution is not None]
            if unbegun and (not begun or self.rng.random() < 0.3):
                unbegun[0].begin()
            elif begun:
                self.rng.choice(begun).test()

    def stop(self) -> None:
        """End all calls as the engine does after an error (`hetcomm.works.underway`), but on ranks that are dead."""
        for rank, executor in enumerate(self.executors):
            if rank in self.network.dead:
                continue
            for call in self.calls[rank]:
                if call.execution is not None:
                    call.execution.abort()
                call.release()
            executor.abort()
            for communicator in self.communicators[rank].values():
                communicator.abort()

    def check(self) -> None:
        """No race, no gate forgotten."""
        for device in self.devices.values():
            assert not device.violations, "\n".join(map(str, device.violations[:5]))
            assert device.closed_gates == 0
            assert device.idle()


class FakeCommunicatorOf:
    """`tests.runtime.test_executor.FakeCommunicator`, with what the whole protocol asks."""

    def __init__(self, shared: HostGroup, rank: int) -> None:
        self.rank, self.nranks = rank, shared.nranks
        self._shared, self._calls = shared, 0
        self.aborted = False

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        number = self._calls
        self._calls += 1
        return self._shared.join(number, self.rank, collective, in_memory, out_memory)

    def progress(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def drain(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass


class DeviceCall:
    """One rank's call, as the engine makes it (`hetcomm.works.work`), between work of the user's on its stream."""

    def __init__(
        self, ranks: DeviceRanks, number: int, mine: Invocation, factor: Number | None, program: Program | None
    ) -> None:
        self.execution: Execution | None = None
        self.over = False
        self.mine = mine
        self._ranks, self._number, self._factor = ranks, number, factor
        self._executor = ranks.executors[mine.rank]
        self._program = ranks.program(program or select.plan(mine.mine, ranks.topology, mine.rank))
        self._order: Ordering | None = None
        device = ranks.devices.get(mine.rank)
        in_place, rank = mine.mine.in_place, mine.rank
        self.arrays: tuple[FakeArray, ...] = ()
        if device is None:
            self._in = None if in_place else memory(mine.source, argument="i", rank=rank, writable=False)
            self._out: Memory | None = memory(mine.target, argument="o", rank=rank, writable=True)
            return
        rng = ranks.rng
        source = _undefined(device, mine.source)
        target = source if in_place else _undefined(device, mine.target)
        self.arrays = source, target
        self._in, self._out = None if in_place else source.memory, target.memory
        stream = rng.choice(ranks.streams[rank])
        if rng.random() < 0.5:
            device.delay(stream, rng.randint(1, 60))
        if ranks.with_obstacles and rng.random() < 0.3:
            ranks.obstacles.append(device.obstacle(stream))
        if not in_place:
            target.put(mine.target, stream)
        source.put(mine.source, stream)
        self._order = Ordering(device, stream, self._out, rank)
        if rng.random() < 0.5:
            self.begin()
        self._order.hold()
        self.seen = target.snapshot(stream), source.snapshot(stream)
        for array in {id(array): array for array in (source, target)}.values():
            array.put(np.zeros(array.shape, array.dtype), stream)

    def begin(self) -> None:
        """Start the program, if all calls before it have been started."""
        for call in self._ranks.calls[self.mine.rank]:
            if call is self:
                break
            if call.execution is None:
                return
        kind = MemoryKind.HOST if self._order is None else MemoryKind.CUDA
        bound = self._executor.bind(self._program, kind)
        self.execution = self._executor.run(
            bound, self._number, 0, self._in, self._out, self._factor, self._number, self._order
        )
        if self._order is not None:
            self._order.exit = self.execution.exit

    def test(self) -> None:
        """Move it along."""
        assert self.execution is not None  # or `begin` would be due
        if self.execution.test():
            self.release()

    def release(self) -> None:
        """It is over, well or not."""
        self.over = True
        if self._order is not None:
            self._order.release()

    def output(self) -> Any:
        """What the user has seen of the output, packed."""
        if self._order is not None:
            self.mine.target[:], self.mine.source[:] = self.seen[0].values, self.seen[1].values
        return self.mine.output()

    def describe(self) -> str:
        """What it waits for."""
        what = "its turn" if self.execution is None else self.execution.waiting_for()
        return f"rank {self.mine.rank} ({self._ranks.roles[self.mine.rank]}), call {self._number}, waits for {what}"


def _undefined(device: FakeDevice, like: Any) -> FakeArray:
    """An array whose values come later."""
    array = np.empty(like.shape, like.dtype)
    array.view(np.uint8)[:] = 0xFF
    return device.array(array)
