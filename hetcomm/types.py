"""The small types every room shares: data types, reduction operations, memory kinds, configuration.

This file knows no array library: what a `numpy.dtype` or a `torch.dtype` corresponds to is decided in
`hetcomm.calls.buffers`. The environment is read in one place, `Config.from_environ`.
"""

from __future__ import annotations

import difflib
import enum
import logging
import math
import operator
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Complex, Real
from typing import Any, cast

from hetcomm.errors import UsageError

__all__ = [
    "AVG",
    "BAND",
    "BOR",
    "BXOR",
    "COMBINING",
    "LAND",
    "LOR",
    "LXOR",
    "MAX",
    "MIN",
    "PROD",
    "SUM",
    "VARIABLES",
    "ArrayLike",
    "Config",
    "DataType",
    "Memory",
    "MemoryKind",
    "Number",
    "PremulSum",
    "ReduceKind",
    "ReduceOp",
    "Variable",
    "as_number",
    "check_meaning",
    "has_meaning",
    "identity",
    "premul_sum",
    "seconds",
]

Number = int | float | complex


class DataType(enum.Enum):
    """An element type; the value is NumPy's (and `ml_dtypes`') name for it."""

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"

    def __init__(self, name: str) -> None:
        self.itemsize = int(name.lstrip("abcdefghijklmnopqrstuvwxyz") or 8) // 8
        """Size of one element in bytes."""
        self.is_integer = name.startswith(("int", "uint"))
        self.is_complex = name.startswith("complex")
        self.is_inexact = "float" in name or self.is_complex
        """Whether its numbers are rounded and may be NaN."""

    @property
    def is_signed(self) -> bool:
        return not self.value.startswith(("uint", "bool"))


class ReduceKind(enum.Enum):
    """What a reduction does to two elements."""

    SUM = "sum"
    PROD = "prod"
    MIN = "min"
    MAX = "max"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"
    LAND = "land"
    LOR = "lor"
    LXOR = "lxor"
    AVG = "avg"
    PREMUL_SUM = "premul_sum"

    @property
    def combining(self) -> ReduceKind:
        """The binary operation underneath: `SUM` for `AVG` and `PREMUL_SUM`, else the kind itself."""
        return self if self in _UFUNCS else ReduceKind.SUM

    @property
    def ufunc(self) -> str:
        """NumPy's name of the binary operation underneath."""
        return _UFUNCS[self.combining]

    @property
    def is_logical(self) -> bool:
        """Whether results are 0 or 1, whatever the inputs."""
        return self in (ReduceKind.LAND, ReduceKind.LOR, ReduceKind.LXOR)


_UFUNCS = {
    ReduceKind.SUM: "add",
    ReduceKind.PROD: "multiply",
    ReduceKind.MIN: "minimum",
    ReduceKind.MAX: "maximum",
    ReduceKind.BAND: "bitwise_and",
    ReduceKind.BOR: "bitwise_or",
    ReduceKind.BXOR: "bitwise_xor",
    ReduceKind.LAND: "logical_and",
    ReduceKind.LOR: "logical_or",
    ReduceKind.LXOR: "logical_xor",
}
COMBINING = tuple(_UFUNCS)
"""The binary operations, which vendors and programs have; `AVG` and `PREMUL_SUM` are composed of them."""


@dataclass(frozen=True, slots=True)
class ReduceOp:
    """A reduction operation: `SUM`, `PROD`, `MIN`, `MAX`, `BAND`, `BOR`, `BXOR`, `LAND`, `LOR`, `LXOR`, `AVG`, or
    `premul_sum(factor)`.

    Integer sums and products wrap around as NumPy's do. `AVG` is the sum divided once by the number of
    ranks; on integers the quotient is truncated towards zero, as NCCL does. NaN propagates
    through `MIN` and `MAX`.

    The bitwise ops `BAND`, `BOR` and `BXOR` and the logical ones `LAND`, `LOR` and `LXOR` are for integers and bool, as
    in MPI. A logical op takes every element but 0 as true, and gives 0 or 1 in the array's dtype, on a single rank too.
    On bool both are the same, `MIN` is and, `MAX` is or, and the others are refused: MPI has no sum of bool, NumPy's is
    a count, and that of `numpy.add` an or.
    """

    kind: ReduceKind

    def __str__(self) -> str:
        return self.kind.value

    @classmethod
    def parse(cls, op: Any) -> ReduceOp:
        """The operation meant by a string, a `ReduceOp`, or an mpi4py `Op`.

        Raises:
            UsageError: `op` names no operation; the message lists those there are.
        """
        if isinstance(op, ReduceOp):
            return op
        name = op if isinstance(op, str) else _mpi_op_name(op)
        lowered = "" if name is None else name.lower()
        found = _BY_NAME.get(lowered)
        if found is not None:
            return found
        if lowered == "premul_sum":
            raise UsageError(
                "op 'premul_sum' needs each rank's factor",
                remedy="Pass op=hetcomm.premul_sum(factor).",
            )
        if lowered in _OF_PAIRS:
            least = _OF_PAIRS[lowered]
            raise UsageError(
                f"op {lowered!r} reduces pairs of a value and an index, and no dtype of arrays here is such a pair",
                remedy=f"Reduce the values with op={least!r}; then numpy.where(values == result, rank, nranks) with "
                "op='min' gives the lowest rank that has it.",
            )
        raise UsageError(
            f"op {op!r} is no reduction hetcomm knows",
            remedy=f"Use one of {', '.join(map(repr, _BY_NAME))}, or hetcomm.premul_sum(factor).",
        )


@dataclass(frozen=True, slots=True)
class PremulSum(ReduceOp):
    """Sum of each rank's input times that rank's own `factor` (NCCL's PreMulSum), which calls check."""

    factor: Any = 1


SUM = ReduceOp(ReduceKind.SUM)
PROD = ReduceOp(ReduceKind.PROD)
MIN = ReduceOp(ReduceKind.MIN)
MAX = ReduceOp(ReduceKind.MAX)
BAND = ReduceOp(ReduceKind.BAND)
BOR = ReduceOp(ReduceKind.BOR)
BXOR = ReduceOp(ReduceKind.BXOR)
LAND = ReduceOp(ReduceKind.LAND)
LOR = ReduceOp(ReduceKind.LOR)
LXOR = ReduceOp(ReduceKind.LXOR)
AVG = ReduceOp(ReduceKind.AVG)
_BY_NAME = {op.kind.value: op for op in (SUM, PROD, MIN, MAX, BAND, BOR, BXOR, LAND, LOR, LXOR, AVG)}
_OF_PAIRS = {"minloc": "min", "maxloc": "max"}


def premul_sum(factor: Any) -> PremulSum:
    """The operation that multiplies this rank's input by `factor` and sums over the ranks.

    Each rank may pass another factor: a number of Python's or NumPy's, as it is now. On integer arrays it must be an
    integer. What is no number is refused by the call that it is passed to, since all ranks must learn of that.
    """
    try:
        number = as_number(factor)
    except Exception:  # noqa: BLE001  # a method of its own raised it: it will do so again, in the call
        number = None
    return PremulSum(ReduceKind.PREMUL_SUM, factor if number is None else number)


def as_number(value: Any) -> Number | None:
    """`value` as a Python number, if it is a number; an integer of any type stays exact."""
    if type(value) in (int, float, complex):
        return cast(Number, value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of an array library
        value = value.item()
    try:
        return int(operator.index(value))
    except TypeError:
        pass
    if isinstance(value, Complex) and not isinstance(value, Real):
        return complex(value)
    if isinstance(value, Real) or (hasattr(value, "__float__") and not hasattr(value, "__len__")):
        return float(value)
    return None


def seconds(value: Any) -> float:
    """A positive, finite number of seconds, of any type of number.

    Raises:
        UsageError: It is none; whatever asking it raises is the cause.
    """
    cause, shown = None, f"of type {type(value).__name__}"
    try:
        number = as_number(value)
        if isinstance(number, (int, float)) and 0 < number < math.inf:
            return float(number)
        shown = repr(value)
    except Exception as error:  # noqa: BLE001  # a method of its own may raise anything
        cause = error
    raise UsageError(shown, remedy="Pass a positive number of seconds.") from cause


def _mpi_op_name(op: Any) -> str | None:
    """'sum' for mpi4py's `MPI.SUM` and so on, without importing mpi4py; None for anything else.

    An `Op` has no name, so it is compared with those of its module, which is there since the `Op` is.
    """
    if type(op).__module__ != "mpi4py.MPI" or type(op).__name__ != "Op":
        return None
    mpi = sys.modules["mpi4py.MPI"]
    names = (*(kind.value for kind in COMBINING), *_OF_PAIRS)
    return next((name for name in names if op == getattr(mpi, name.upper())), None)


def has_meaning(kind: ReduceKind, dtype: DataType) -> bool:
    """Whether elements of that type can be reduced so; `ReduceOp` says what is decided."""
    match kind:
        case ReduceKind.MIN | ReduceKind.MAX:
            return not dtype.is_complex
        case ReduceKind.SUM | ReduceKind.PROD | ReduceKind.AVG | ReduceKind.PREMUL_SUM:
            return dtype is not DataType.BOOL
        case _:
            return not dtype.is_inexact


def check_meaning(kind: ReduceKind, dtype: DataType) -> None:
    """Refuse an op for elements that it has no meaning for.

    Raises:
        UsageError: It has none; the remedy says what to do instead.
    """
    if has_meaning(kind, dtype):
        return
    name = f"op '{kind.value}' has no meaning for {dtype.value}"
    if dtype is DataType.BOOL:
        raise UsageError(
            f"{name}: it could be a count or a logical operation",
            remedy="Use op='lor' (true on any rank) or op='land' (true on all), or reduce array.astype('int64').",
        )
    if kind in (ReduceKind.MIN, ReduceKind.MAX):
        raise UsageError(
            f"{name}: complex numbers have no order",
            remedy="Reduce the real and imaginary parts, or the absolute value.",
        )
    raise UsageError(
        f"{name}: it is for integers and bool",
        remedy="Reduce array != 0, which is bool."
        if kind.is_logical
        else "Reduce array.view() as unsigned integers, if it is the bits that count.",
    )


def identity(kind: ReduceKind, dtype: DataType) -> Number:
    """The element that changes nothing when combined: 0, 1, all bits, or the dtype's lowest or highest value.

    For floating types the lowest and highest are the infinities. A logical op makes any element but 0 a 1.

    Raises:
        UsageError: The op has no meaning for the dtype.
    """
    check_meaning(kind, dtype)
    bits = 8 * dtype.itemsize
    match kind.combining:
        case ReduceKind.PROD | ReduceKind.LAND:
            return 1
        case ReduceKind.BAND:
            return -1 if dtype.is_signed else 1 if dtype is DataType.BOOL else (1 << bits) - 1
        case ReduceKind.MIN | ReduceKind.MAX:
            if dtype.is_inexact:
                return -math.inf if kind is ReduceKind.MAX else math.inf
            if dtype is DataType.BOOL:
                return int(kind is ReduceKind.MIN)
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if dtype.is_signed else (0, (1 << bits) - 1)
            return low if kind is ReduceKind.MAX else high
        case _:
            return 0


class MemoryKind(enum.Enum):
    """Where an array lives."""

    HOST = "host"
    CUDA = "cuda"
    ROCM = "rocm"


ArrayLike = Any
"""Any object with `__cuda_array_interface__`, the buffer protocol, or `__dlpack__`."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the environment.

    Attributes:
        name: The variable.
        setting: The attribute of `Config` that it sets.
        unset: What holds where it is unset or empty.
        meaning: What it says.
    """

    name: str
    setting: str
    unset: str
    meaning: str


VARIABLES = (
    Variable("HETCOMM_VENDOR", "vendor", "detected", "the vendor of this rank"),
    Variable("HETCOMM_CLUSTER", "cluster", "none", "what tells clusters of one vendor apart"),
    Variable("HETCOMM_TOPOLOGY", "topology", "detected", "path of a topology file, the same on all ranks"),
    Variable("HETCOMM_UCX_HOME", "ucx_home", "the wheel, or the system's", "prefix of the UCX to load"),
    Variable("HETCOMM_TIMEOUT", "timeout", "300", "seconds that any wait may take"),
    Variable(
        "HETCOMM_HEARTBEAT_TIMEOUT",
        "heartbeat_timeout",
        "2.5",
        "seconds after which a rank on another host that cannot be reached is taken for dead, on rank 0; 0: never",
    ),
    Variable("HETCOMM_BOOTSTRAP", "bootstrap", "detected", "how the ranks find one another: `mpi`, `tcp` or `single`"),
    Variable(
        "HETCOMM_CALIBRATION", "calibration", "none", "path of a calibration, by which plans are chosen, on rank 0"
    ),
    Variable(
        "HETCOMM_INLINE_BYTES",
        "inline_bytes",
        "4194304; on one host no limit",
        "bytes of a vector times ranks of a cluster up to which vendor calls are written out as messages, on rank 0",
    ),
)
"""All variables that `Config.from_environ` reads."""

_PREFIX = "HETCOMM_"
_OF_LAUNCHER = frozenset(
    {"HETCOMM_RANK", "HETCOMM_NRANKS", "HETCOMM_ADDRESS", "HETCOMM_KEY", "HETCOMM_RESTARTS", "HETCOMM_LIFE"}
)
_READ_ELSEWHERE = _OF_LAUNCHER | frozenset(  # by hetcomm's build, tests and benchmarks
    {"HETCOMM_CUPY_WHEELS", "HETCOMM_GPU_MATRIX_SECONDS", "HETCOMM_LAB", "HETCOMM_ONECCL_HOME"}
)
_log = logging.getLogger(__name__)
_warned: set[str] = set()


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    """Say once of each variable with hetcomm's prefix that nothing reads it, and which one may have been meant."""
    known = [variable.name for variable in VARIABLES]
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in known and name not in _READ_ELSEWHERE and name not in _warned:
            _warned.add(name)
            near = difflib.get_close_matches(
                name.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in known], 1
            )
            hint = f"did you mean {_PREFIX}{near[0]}?" if near else f"the known ones are {', '.join(known)}."
            _log.warning("the environment variable %s is not known to hetcomm and has no effect: %s", name, hint)


def _seconds(environ: Mapping[str, str], name: str, unset: str) -> float:
    """The seconds that a variable says; NaN if it says no finite number."""
    try:
        seconds = float(environ.get(name, unset))
    except ValueError:
        return math.nan
    return seconds if math.isfinite(seconds) else math.nan


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one process, read once when `hetcomm.init` runs.

    Attributes:
        vendor: `HETCOMM_VENDOR`: the vendor of this rank; None detects it.
        cluster: `HETCOMM_CLUSTER`: distinguishes clusters of the same vendor.
        topology: `HETCOMM_TOPOLOGY`: path of a topology file in TOML.
        ucx_home: `HETCOMM_UCX_HOME`: prefix of the UCX to load if none is loaded yet; it wins over an installed wheel.
        timeout: `HETCOMM_TIMEOUT`: seconds any wait may take, 300 unless set.
        calibration: `HETCOMM_CALIBRATION`: path of a calibration, by which plans are chosen; that of rank 0 counts.
        inline_bytes: `HETCOMM_INLINE_BYTES`: calls of vendors that take host memory are written out as messages in
            clusters whose number of ranks, times the bytes of the vector, is at most this; 0: never. Unless set
            4 MiB, and no limit in jobs of several clusters on one host; that of rank 0 counts, and a calibration
            overrides it.
        heartbeat_timeout: `HETCOMM_HEARTBEAT_TIMEOUT`: seconds after which a rank on another host that cannot be
            reached is taken for dead, 2.5 unless set; 0: there is no heartbeat. That of rank 0 counts.
        bootstrap: `HETCOMM_BOOTSTRAP`: how the ranks find one another: 'mpi', 'tcp', 'single', or None to detect.
    """

    vendor: str | None = None
    cluster: str | None = None
    topology: str | None = None
    ucx_home: str | None = None
    timeout: float = 300.0
    bootstrap: str | None = None
    calibration: str | None = None
    inline_bytes: int | None = None
    heartbeat_timeout: float = 2.5

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The configuration the environment asks for; `VARIABLES` lists what it reads.

        A variable whose name begins as these do but is none of them is warned of in the log, once.

        Raises:
            UsageError: `HETCOMM_TIMEOUT` is not a positive number of seconds, `HETCOMM_HEARTBEAT_TIMEOUT` neither 0
                nor at least half a second, or `HETCOMM_INLINE_BYTES` no number.
        """
        env = os.environ if environ is None else environ
        _warn_of_unknown(env)
        timeout = _seconds(env, "HETCOMM_TIMEOUT", "300")
        if not timeout > 0:
            raise UsageError(
                f"HETCOMM_TIMEOUT={env['HETCOMM_TIMEOUT']!r} is not a time",
                remedy="Set a positive number of seconds, or unset it for 300.",
            )
        beats = _seconds(env, "HETCOMM_HEARTBEAT_TIMEOUT", "2.5")
        if not beats >= 0.5 and beats != 0:
            raise UsageError(
                f"HETCOMM_HEARTBEAT_TIMEOUT={env['HETCOMM_HEARTBEAT_TIMEOUT']!r} is no time for a heartbeat",
                remedy="Set at least 0.5 seconds, 0 for none, or unset it for 2.5.",
            )
        most = env.get("HETCOMM_INLINE_BYTES") or None
        if most is not None and not (most.isascii() and most.isdecimal() and len(most) < 20):
            raise UsageError(
                f"HETCOMM_INLINE_BYTES={most!r} is no number of bytes", remedy="Set a number like 0 or 1048576."
            )
        return cls(
            inline_bytes=None if most is None else int(most),
            vendor=env.get("HETCOMM_VENDOR") or None,
            cluster=env.get("HETCOMM_CLUSTER") or None,
            topology=env.get("HETCOMM_TOPOLOGY") or None,
            ucx_home=env.get("HETCOMM_UCX_HOME") or None,
            timeout=timeout,
            heartbeat_timeout=beats,
            bootstrap=env.get("HETCOMM_BOOTSTRAP") or None,
            calibration=env.get("HETCOMM_CALIBRATION") or None,
        )

    @classmethod
    def usable_part(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The same, but what cannot be used is as if it were not set."""
        env = os.environ if environ is None else environ
        usable = {}
        for name in [name for name in env if name.startswith("HETCOMM_")]:
            try:
                cls.from_environ({name: env[name]})
            except ValueError:
                continue
            usable[name] = env[name]
        return cls.from_environ(usable)


@dataclass(frozen=True, slots=True)
class Memory:
    """A contiguous run of elements somewhere: what transports and vendors are given instead of arrays.

    Attributes:
        address: Of the first element, on the host or the device.
        count: Number of elements.
        dtype: Their type.
        kind: Where they live.
        owner: Kept only so that the memory lives as long as this view of it.
    """

    address: int
    count: int
    dtype: DataType
    kind: MemoryKind = MemoryKind.HOST
    owner: Any = None

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def part(self, offset: int, count: int) -> Memory:
        """The `count` elements from `offset` on."""
        if not 0 <= offset <= offset + count <= self.count:
            raise ValueError(f"elements {offset} to {offset + count} lie outside a memory of {self.count}")
        return Memory(self.address + offset * self.dtype.itemsize, count, self.dtype, self.kind, self.owner)
