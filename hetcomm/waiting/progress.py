"""The thread that moves a job's calls on device arrays while the user's thread does something else.

It starts with the first such call and sleeps while nothing is in the background. Otherwise it takes the lock, moves
everything once, and waits a little for something to happen, in the transport, without the GIL. The
user's thread goes first: it interrupts that wait when it wants the lock.
"""

from __future__ import annotations

import logging
import threading
import time

from hetcomm.devices.base import Device
from hetcomm.transport.base import Transport
from hetcomm.waiting.waiting import Pump

__all__ = ["ProgressThread"]

_log = logging.getLogger(__name__)

_SLICE = 200e-6  # seconds of one watch
_DROWSY = 0.02  # seconds without any movement after which it sleeps between two turns
_SLEEP = 50e-6
_PARTING = 5.0  # seconds that it gets to end


class ProgressThread:
    """Moves a pump in the background.

    Args:
        pump: What is moved.
        transport: What it moves, in which the thread waits.
        device: What its calls are on.
    """

    def __init__(self, pump: Pump, transport: Transport, device: Device) -> None:
        self._pump = pump
        self._device = device
        self._lock = pump.lock
        self._lock.rouse = transport.rouse
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="hetcomm progress", daemon=True)
        pump.share(device.query)
        self._thread.start()

    def stop(self) -> None:
        """End it; nothing is in the background any more."""
        self._stopped = True
        self._pump.roused.set()
        self._thread.join(_PARTING)
        self._pump.unshare()

    def _run(self) -> None:
        self._device.use()
        pump, quiet_since = self._pump, time.monotonic()
        while not self._stopped:
            if not pump.active:
                pump.roused.clear()
                if not pump.active and not self._stopped:  # it may have been roused in between
                    pump.roused.wait()
                quiet_since = time.monotonic()
                continue
            self._lock.come_second()
            try:
                moved = pump.progress()
                if not moved and pump.active:
                    moved = pump.watch(_SLICE)
            except Exception:  # noqa: BLE001  # whatever it hit is unusable now and says why at its next call
                _log.warning("moving calls in the background failed", exc_info=True)
                moved = False
            finally:
                self._lock.__exit__()
            now = time.monotonic()
            if moved:
                quiet_since = now
            elif now - quiet_since > _DROWSY:
                time.sleep(_SLEEP)
