"""The devices that arrays may live on: `base` says what the runtime asks of one, `gpu` drives CUDA and ROCm with CuPy.

Nothing here imports CuPy before a device is opened.
"""

from __future__ import annotations

from hetcomm.devices.base import Device
from hetcomm.types import MemoryKind

__all__ = ["Devices", "open_device"]


def open_device(kind: MemoryKind) -> Device:
    """The calling thread's current device of that kind; the same object each time, so that kernels are loaded once.

    Raises:
        DeviceError: It cannot be used; the remedy says what to install.
    """
    from hetcomm.devices.gpu import current_gpu

    return current_gpu(kind)


class Devices:
    """The devices of a process, each opened when it is first needed.

    Attributes:
        opened: Those open, by kind.
    """

    def __init__(self) -> None:
        self.opened: dict[MemoryKind, Device] = {}

    def get(self, kind: MemoryKind) -> Device:
        """The device of that kind.

        Raises:
            DeviceError: It cannot be used.
        """
        found = self.opened.get(kind)
        if found is None:
            found = self.opened[kind] = open_device(kind)
        return found
