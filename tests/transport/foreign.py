"""A UCP worker that hetcomm has not made: through ctypes, with any features and thread mode."""

from __future__ import annotations

import ctypes

from hetcomm.transport.library import load_library

TAG, RMA, WAKEUP, STREAM, AM = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 6
SINGLE, SERIALIZED, MULTI = 0, 1, 2


class _Params(ctypes.Structure):
    """`ucp_params_t` or `ucp_worker_params_t` as far as they are set here, with room for all versions."""

    _fields_ = (("field_mask", ctypes.c_uint64), ("first", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 62))


class ForeignWorker:
    """A worker with the address of its `ucp_worker_h` under `handle`, progressed by nobody but by `progress`."""

    def __init__(self, features: int = TAG | WAKEUP, mode: int = MULTI) -> None:
        self._ucp = ctypes.CDLL(load_library().path)
        self._context, self._worker = ctypes.c_void_p(), ctypes.c_void_p()
        version = [ctypes.c_uint() for _ in range(3)]
        self._ucp.ucp_get_version(*map(ctypes.byref, version))
        major, minor, _ = version
        of_context, of_worker = _Params(1, features), _Params(1, mode)  # bit 0: UCP_PARAM_FIELD_FEATURES, THREAD_MODE
        context = ctypes.byref(self._context)
        assert self._ucp.ucp_init_version(major, minor, ctypes.byref(of_context), None, context) == 0
        assert self._ucp.ucp_worker_create(self._context, ctypes.byref(of_worker), ctypes.byref(self._worker)) == 0

    @property
    def handle(self) -> int:
        """The address of the worker; 0 once closed."""
        return self._worker.value or 0

    def progress(self) -> int:
        """Move its messages along."""
        return int(self._ucp.ucp_worker_progress(self._worker))

    def close(self) -> None:
        """Destroy it."""
        if self._worker:
            self._ucp.ucp_worker_destroy(self._worker)
            self._ucp.ucp_cleanup(self._context)
            self._worker.value = None
