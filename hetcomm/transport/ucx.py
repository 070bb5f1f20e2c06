"""The transport over UCX: host and device memory, shared memory, RDMA and TCP, whatever this machine has.

All messages go through one `hetcomm._ext.ucp.Worker`, of which `UcxTransport` is the kind that chooses its library.
One thread at a time may use a transport.
"""

from __future__ import annotations

import os

from hetcomm._ext import ucp
from hetcomm.transport.library import Library, load_library
from hetcomm.types import Config, MemoryKind

__all__ = ["UcxTransport"]

# Without the first two UCX sends through TCP between processes of one host, ten times slower, as soon as failures are
# to be noticed. The third is how often UCX looks whether idle peers are alive; it waits 20 s unless told.
_OPTIONS = {"POSIX_ERROR_HANDLING": "y", "SYSV_ERROR_HANDLING": "y", "KEEPALIVE_INTERVAL": "500ms"}


class UcxTransport(ucp.Worker):
    """A `hetcomm.transport.base.Transport` over UCX.

    UCX's own environment variables (`UCX_TLS`, `UCX_NET_DEVICES`, ...) hold. Beside the protocol's methods there are
    `send_buffer` and `recv_buffer`, the short way for host arrays, `register` and `deregister` for memory that many
    messages use, and `lanes`, `describe` and `statistics` for people who ask.

    Args:
        config: Where to look for UCX; the defaults if None.
        worker_handle: The address of a running UCP worker to share (`worker.handle` of UCXX or ucx-py). It is not
            destroyed by `close`.

    Raises:
        TransportError: There is no UCX, it is too old, or it does not start.
    """

    library: Library

    def __init__(self, config: Config | None = None, *, worker_handle: int | None = None) -> None:
        self.library = load_library(config)
        ucp.resolve(self.library.path)
        options = {name: value for name, value in _OPTIONS.items() if f"UCX_{name}" not in os.environ}
        super().__init__(options, worker_handle or 0)

    @classmethod
    def adopt(cls, handle: int) -> UcxTransport:
        """Share the running UCP worker at address `handle`, whose owner keeps it."""
        return cls(worker_handle=handle)

    def supports(self, memory: MemoryKind) -> bool:
        """Whether addresses of that memory may be passed to `send` and `recv`."""
        return self.supports_memory_type(memory.value)

    def lanes(self) -> str:
        """One line per peer: the transports and devices UCX has chosen for it."""
        return "\n".join(f"peer {peer}: {', '.join(names)}" for peer, names in sorted(self.lane_names().items()))

    def __repr__(self) -> str:
        return f"<UcxTransport on {self.library}{', closed' if self.closed else ''}>"
