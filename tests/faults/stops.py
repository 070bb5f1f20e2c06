"""Jobs in which a rank is stopped for a while: shorter than the others' patience, or longer."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

import hetcomm

TIMEOUT = 3.0

# A rank that is stopped cannot wake itself up.
WAKE = "import os, signal, sys, time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), signal.SIGCONT)"


def stop_myself(seconds: float) -> None:
    subprocess.Popen([sys.executable, "-c", WAKE, str(os.getpid()), str(seconds)])
    os.kill(os.getpid(), signal.SIGSTOP)


class Heard(logging.Handler):
    """What has been logged of stopped ranks, and when."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[tuple[float, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((time.monotonic(), record.levelno, record.getMessage()))


def listening() -> Heard:
    heard = Heard()
    log = logging.getLogger("hetcomm.health")
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    return heard


def go_on(victim: int, seconds: float, count: int) -> dict[str, Any]:
    """One rank is stopped for a while: all values are right, and the others have noticed."""
    heard = listening()
    wrong = 0
    with hetcomm.init() as comm:
        array = np.zeros(count, np.float32)
        for turn in range(40):
            if turn == 20 and comm.rank == victim:
                stop_myself(seconds)
            elif turn == 30 and comm.rank == victim:
                threading.Event().wait(0.5)  # the others wait, and look again
            array[:] = comm.rank + turn
            comm.all_reduce(array)
            wrong += not (array == comm.nranks * (comm.nranks - 1) / 2 + comm.nranks * turn).all()
    return {"wrong": wrong, "said": [(level, text) for _, level, text in heard.said]}


def wait_in_vain(victim: int, count: int, how: str) -> dict[str, Any]:
    """One rank is stopped for longer than the others wait, or computes, or is in another call."""
    heard = listening()
    comm = hetcomm.init(timeout=60 if how == "stopped" else TIMEOUT)
    array = np.zeros(count, np.float32)
    for _ in range(5):
        comm.all_reduce(array)
    told: dict[str, Any] = {"error": None}
    begun = time.monotonic()
    if comm.rank == victim:
        if how == "stopped":
            stop_myself(2.5 * TIMEOUT)
        elif how == "busy":
            threading.Event().wait(2.5 * TIMEOUT)
    try:
        if how == "elsewhere" and comm.rank == victim:
            comm.recv(np.zeros(1), (victim + 1) % comm.nranks, timeout=2.5 * TIMEOUT)
        else:
            comm.all_reduce(array, timeout=TIMEOUT)
    except hetcomm.HetcommError as error:
        told["error"] = type(error).__name__, sorted(error.ranks), str(error)
        told["whereabouts"] = [(each.rank, each.state, each.called, each.host, each.last) for each in error.whereabouts]
        told["seconds"] = time.monotonic() - begun
    told["said"] = [(at - begun, level, text) for at, level, text in heard.said]
    comm.close()
    return told
