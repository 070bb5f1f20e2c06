"""Which ranks have a heartbeat with one another: a pure function of where they are.

Up to `MESH` ranks on other hosts, each rank has one with all of them: whoever ends or is cut off is seen by every other
at once, whatever else happens. That is 5 frames of 16 bytes a second to each, and the same back. In larger jobs a rank
has one with the ranks of its own *seat* on each other host, and with some on its own host, so that word of the dead
reaches everybody in a few steps: with H hosts of n ranks each that is H - 1 + 2 log2(n) for a rank.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MESH", "partners"]

MESH = 32


def partners(homes: Sequence[str], rank: int, mesh: int = MESH) -> list[int]:
    """The ranks that `rank` has a heartbeat with, which have one with it; none in a job on one host.

    Args:
        homes: Of each rank, what is equal for those whose processes see one another.
        rank: One of them.
        mesh: See `MESH`; it is the largest number of ranks elsewhere, of any rank, that counts.
    """
    members: dict[str, list[int]] = {}
    for number, home in enumerate(homes):
        members.setdefault(home, []).append(number)
    if len(members) < 2:
        return []
    mates = members.pop(homes[rank])
    fewest = min(len(mates), *(len(ranks) for ranks in members.values()))
    if len(homes) - fewest <= mesh:
        return sorted(number for ranks in members.values() for number in ranks)
    seat = mates.index(rank)
    found = {number for ranks in members.values() for number in _across(seat, len(mates), ranks)}
    return sorted(found | {mates[place] for place in _beside(seat, len(mates))})


def _across(seat: int, seats: int, ranks: Sequence[int]) -> Sequence[int]:
    """Those of another home that sit where `seat` does; in the smaller home of two, several times."""
    return ranks[seat::seats] if seats <= len(ranks) else [ranks[seat % len(ranks)]]


def _beside(seat: int, seats: int) -> set[int]:
    """The seats a power of two away, both ways round."""
    steps = [1 << bit for bit in range(seats.bit_length()) if 1 << bit < seats]
    return {place % seats for step in steps for place in (seat - step, seat + step)} - {seat}
