"""The contenders there are, by name, and how those that can take part in a job are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hetcomm
from hetcomm._cli.against_direct import Direct
from hetcomm._cli.against_gloo import Gloo
from hetcomm._cli.against_mpi import Mpi
from hetcomm._cli.against_parts import Ucx, Vendor
from hetcomm._cli.cases import Case
from hetcomm._cli.contenders import Contender, Hetcomm, Persistent
from hetcomm.errors import UsageError

__all__ = ["BASELINES", "HETCOMM", "opened", "parse"]

HETCOMM = "hetcomm"

BASELINES = {
    "gloo": "PyTorch's Gloo over all ranks",
    "mpi": "the flat call of mpi4py on MPI.COMM_WORLD",
    "vendor": "the vendor library of a job of one vendor, called directly",
    "ucx": "raw UCX messages, for send_recv",
    "direct": "an all_reduce through memory that all ranks of the host map, a bound rather than a library",
    "persistent": "hetcomm's persistent form of the same call",
}
"""What `--vs` takes."""

_MAKERS: dict[str, tuple[Callable[[hetcomm.Communicator], str], Callable[[hetcomm.Communicator], Contender]]] = {
    "gloo": (Gloo.problem, Gloo),
    "mpi": (Mpi.problem, Mpi),
    "vendor": (Vendor.problem, Vendor),
    "ucx": (Ucx.problem, Ucx),
    "direct": (Direct.problem, Direct),
    "persistent": (lambda comm: "", Persistent),
}


def parse(text: str | None) -> tuple[str, ...]:
    """The baselines that `text` names, with commas between them, each once.

    Raises:
        UsageError: One is not known; the message lists those there are.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text is not None else ()
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"--vs {name!r} is no baseline", remedy=f"Use some of {','.join(BASELINES)}.")
    return names


@contextmanager
def opened(
    names: Sequence[str], comm: hetcomm.Communicator, case: Case
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """hetcomm and those of the baselines `names` that all ranks have, and why the others are left out. Collective.

    Raises:
        VendorError, TransportError: A library is there and fails.
    """
    mine = json.dumps([_MAKERS[name][0](comm) for name in names])
    answers = [json.loads(answer) for answer in comm._parts.group.all_gather(mine.encode())]
    found: dict[str, Contender] = {HETCOMM: Hetcomm(comm)}
    left_out: dict[str, str] = {}
    for number, name in enumerate(names):
        reason = next((answer[number] for answer in answers if answer[number]), None)
        if reason is None:
            contender = _MAKERS[name][1](comm)
            found[name] = contender
            reason = contender.refusal(case)
        if reason is not None:
            left_out[name] = reason
    yield {name: contender for name, contender in found.items() if name not in left_out}, left_out
    for contender in found.values():  # not after an error, when the others do not take part
        contender.close()
