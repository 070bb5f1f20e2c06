def library_version() -> str:
    """Version of the loaded library, such as '2021.16.2'."""

def init() -> None:
    """Initialise the library from the environment; calling it again does nothing."""

class KeyValueStore:
    """Where the ranks of a new communicator meet: made by one of them, joined by the others at its address."""

    def __init__(self, address: bytes | None = None) -> None:
        """Make a store, or join the one at `address`."""
    @property
    def address(self) -> bytes:
        """What the other ranks need to join."""
    def close(self) -> None:
        """Let go of it; the communicators made through it must be closed first."""

class CclEvent:
    """One collective under way."""

    def test(self) -> bool:
        """Progress the library and say whether it is complete; never blocks."""

class CclCommunicator:
    """A communicator. Data types and reductions are oneCCL's own numbers, counts are elements.

    Only `close` destroys it: where the object is merely dropped, other ranks need not be there any more.
    """

    def __init__(self, nranks: int, rank: int, store: KeyValueStore) -> None:
        """Collective over the ranks that share `store`."""
    def all_reduce(self, src: int, dst: int, count: int, dtype: int, op: int) -> CclEvent: ...
    def reduce(self, src: int, dst: int, count: int, dtype: int, op: int, root: int) -> CclEvent: ...
    def reduce_scatter(self, src: int, dst: int, count: int, dtype: int, op: int) -> CclEvent: ...
    def all_gather(self, src: int, dst: int, count: int, dtype: int) -> CclEvent: ...
    def broadcast(self, buffer: int, count: int, dtype: int, root: int) -> CclEvent: ...
    def close(self) -> None:
        """Destroy it; collective, since it waits for the other ranks. Calling it again does nothing."""
    def abandon(self) -> None:
        """Forget it without destroying it: for one whose ranks will not all finish."""
