from collections.abc import Mapping
from typing import Final, final

__all__ = ["ALIVE", "BY_END", "CAUSES", "CUT", "DEAD", "LEFT", "QUIET", "UNMET", "Heart", "mac"]

UNMET: Final[int]
ALIVE: Final[int]
QUIET: Final[int]
CUT: Final[int]
LEFT: Final[int]
DEAD: Final[int]
BY_END: Final[int]
CAUSES: Final[tuple[str, ...]]

def mac(key: bytes, data: bytes) -> int: ...

@final
class Heart:
    partners: Final[tuple[int, ...]]
    def __init__(
        self,
        rank: int,
        nranks: int,
        listener: int,
        partners: Mapping[int, tuple[str, int]],
        key: bytes,
        timeout: float,
    ) -> None: ...
    def fileno(self) -> int: ...
    def dead(self) -> frozenset[int]: ...
    def state(self, rank: int) -> int: ...
    def cause(self, rank: int) -> str: ...
    def close(self) -> None: ...
