"""How the ranks of a job on several hosts set up their heartbeat (`hetcomm._ext.heart`)."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from collections.abc import Sequence

from hetcomm._ext import heart
from hetcomm.errors import TransportError
from hetcomm.health.partners import partners
from hetcomm.vendors import network
from hetcomm.vendors.base import Group

__all__ = ["begin"]

_log = logging.getLogger(__name__)
_KEY = 16  # bytes
_BACKLOG = 64


def begin(group: Group, homes: Sequence[str], timeout: float) -> heart.Heart | None:
    """Start this rank's heartbeat; collective. None if all ranks are at one home, or rank 0 says 0 seconds.

    A job goes on without one, and says so in the log, where ranks cannot reach one another as it needs.

    Args:
        group: All ranks; what it carries, the key among it, must be for them alone.
        homes: Of each rank, what is equal for those whose processes see one another.
        timeout: Seconds of silence after which a rank counts as dead; that of rank 0 holds.

    Raises:
        TransportError: What another rank says cannot be read.
    """
    if len(set(homes)) < 2:
        return None
    said = group.all_gather(json.dumps(dataclasses.asdict(network.here())).encode())
    listener: socket.socket | None = None
    try:
        places = [network.Place(**json.loads(text)) for text in said]
        address = network.reachable_address(places, group.rank)
        if address is not None:
            listener = _listen(address)
        at = None if listener is None else listener.getsockname()[:2]
        mine = json.dumps([at, timeout, os.urandom(_KEY).hex()]).encode()
        answers = [json.loads(text) for text in group.all_gather(mine)]
        where = {rank: (str(each[0][0]), int(each[0][1])) for rank, each in enumerate(answers) if each[0] is not None}
        seconds, key = float(answers[0][1]), bytes.fromhex(answers[0][2])
        if seconds == 0 or len(where) < len(homes):
            if group.rank == 0 and seconds != 0:
                missing = [rank for rank in range(len(homes)) if rank not in where]
                _log.warning(
                    "there is no heartbeat between the hosts of this job: rank %d cannot be reached by IPv4 from "
                    "others; ranks that are cut off are noticed by timeouts only",
                    missing[0],
                )
            return None
        return _start(group.rank, homes, listener, where, key, seconds)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise TransportError(
            f"what another rank says of its heartbeat cannot be read: {error}",
            remedy="Use the same version of hetcomm on all ranks.",
        ) from error
    finally:
        if listener is not None:
            listener.close()  # the heartbeat has its own descriptor by now


def _listen(address: str) -> socket.socket | None:
    try:
        listener = socket.create_server((address, 0), backlog=_BACKLOG)
    except OSError as error:
        _log.warning("the heartbeat cannot listen at %s: %s", address, error)
        return None
    listener.setblocking(False)
    return listener


def _start(
    rank: int,
    homes: Sequence[str],
    listener: socket.socket | None,
    where: dict[int, tuple[str, int]],
    key: bytes,
    timeout: float,
) -> heart.Heart:
    assert listener is not None  # this rank is in `where`, as all are
    given = os.dup(listener.fileno())
    try:
        return heart.Heart(rank, len(homes), given, {each: where[each] for each in partners(homes, rank)}, key, timeout)
    except BaseException:
        os.close(given)
        raise
