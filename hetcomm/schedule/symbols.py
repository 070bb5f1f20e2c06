"""What an element holds, as a symbol: the verifier's two domains.

A *value* is (expression, shift). The expression says how an element came about; the shift says which one it is: a leaf
stands, at position p of a buffer, for element p + shift of that rank's input. So a run of any length is
one value, and moving it changes the shift only.

1. Contents. `Expression` carries which ranks' inputs were combined (a bit mask: as soon as one counts twice, the
   expression has a `fault` and keeps it), with which op, whether factors were applied, whether it was averaged. An
   identity contributes nothing, but combined under another op than its own it is a fault.
2. Bits. Expressions are interned: two elements are bit-identical if they are one and the same expression with one
   shift. A local reduction is an ordered node. A vendor's reduction is an opaque node named by the call, the operands
   and the position in the call, so only the ranks that share its result hold the same one; nothing is assumed about
   its order of additions.

What lies between the blocks of an output is a 'gap', which no output may hold and which must stay where it is.
Undefined elements may be moved and combined freely and stay undefined; only in the output one is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from hetcomm.schedule.dataflow import StepId
from hetcomm.schedule.steps import Scale
from hetcomm.types import ReduceKind

__all__ = ["Expression", "Symbols", "Value", "describe", "moved", "origin_of_fault"]


class Expression:
    """One interned node. Compare with `is`; made by `Symbols` only.

    Attributes:
        how: 'leaf', 'gap', 'identity', 'undefined', 'factor', 'average', 'reduce' or 'vendor'.
        operands: What it was made from; shifts are relative to its own.
        mask: Bit r is set if the input of rank r is in it, and the bit after the last rank's if a gap is.
        op: What its parts were combined with, or what it is the identity of; None for a leaf.
        factored: Its leaves were multiplied by their rank's factor.
        averaged: It was divided by the number of ranks.
        fault: Why no collective ever means this, or None.
        origin: The step that first made it; None for leaves.
    """

    __slots__ = ("averaged", "factored", "fault", "how", "mask", "number", "op", "operands", "origin")

    def __init__(
        self,
        number: int,
        how: str,
        operands: tuple[Value, ...] = (),
        *,
        mask: int = 0,
        op: ReduceKind | None = None,
        factored: bool = False,
        averaged: bool = False,
        fault: str | None = None,
        origin: StepId | None = None,
    ) -> None:
        self.number = number
        self.how = how
        self.operands = operands
        self.mask = mask
        self.op = op
        self.factored = factored
        self.averaged = averaged
        self.fault = fault
        self.origin = origin


Value = tuple[Expression, int]


def moved(value: Value, distance: int) -> Value:
    """The same elements, `distance` positions further on."""
    return (value[0], value[1] - distance) if value[0].mask and distance else value


class Symbols:
    """The table of all expressions of one verification.

    Args:
        nranks: Of the collective.
        op: Of the collective, or None.
    """

    def __init__(self, nranks: int, op: ReduceKind | None) -> None:
        self._nranks = nranks
        self._everyone = (1 << nranks) - 1
        self._op = op
        self._table: dict[Hashable, Expression] = {}
        self.undefined: Value = (Expression(0, "undefined", fault="is undefined"), 0)

    def leaf(self, rank: int, shift: int) -> Value:
        """The input of `rank` as it was passed."""
        key = ("leaf", rank)
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Expression(len(self._table) + 1, "leaf", mask=1 << rank)
        return found, shift

    def gap(self, rank: int) -> Value:
        """What lay between the blocks of the output of `rank` before, at the positions of its buffer."""
        key = ("gap", rank)
        found = self._table.get(key)
        if found is None:
            fault = "comes from between the blocks of a buffer"
            found = self._table[key] = Expression(len(self._table) + 1, "gap", mask=1 << self._nranks, fault=fault)
        return found, 0

    def identity(self, op: ReduceKind) -> Value:
        """The element that changes nothing under `op`."""
        key = ("identity", op)
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Expression(len(self._table) + 1, "identity", op=op)
        return found, 0

    def combine(self, op: ReduceKind, values: Sequence[Value], origin: StepId, call: Hashable = None) -> Value:
        """`values` combined under `op`: in this order, or by the vendor call `call`, as positions of its vector."""
        shift = next((s for expression, s in values if expression.mask), None)
        if shift is None:
            return self._combine_constants(op, values, origin)
        # A vendor may add in another order at another position of its vector: which element lies where is in the name.
        key = (
            op,
            call,
            None if call is None else shift,
            *[(e.number, s - shift if e.mask else 0) for e, s in values],
        )
        found = self._table.get(key)
        if found is None:
            if any(expression.how == "undefined" for expression, _ in values):
                return self.undefined
            operands = tuple((e, s - shift if e.mask else 0) for e, s in values)
            found = self._table[key] = self._node(op, operands, origin, "reduce" if call is None else "vendor")
        return found, shift

    def _combine_constants(self, op: ReduceKind, values: Sequence[Value], origin: StepId) -> Value:
        """Nothing of any input: an identity again, or a fault."""
        if any(expression.how == "undefined" for expression, _ in values):
            return self.undefined
        if all(expression.how == "identity" and expression.op is op for expression, _ in values):
            return self.identity(op)
        key = ("constant", op, *[expression.number for expression, _ in values])
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = self._node(op, tuple(values), origin, "reduce")
        return found, 0

    def _node(self, op: ReduceKind, operands: tuple[Value, ...], origin: StepId, how: str) -> Expression:
        mask = 0
        averaged = False
        factored: bool | None = None
        fault: str | None = None
        for expression, shift in operands:
            if expression.fault:
                fault = expression.fault
            elif expression.how == "identity":
                if expression.op is not op:
                    fault = f"combines the identity of {_name(expression.op)} under {op.value}"
            elif expression.op not in (None, op):
                fault = f"combines results of {_name(expression.op)} under {op.value}"
            elif mask & expression.mask:
                fault = f"counts the input of rank {_lowest(mask & expression.mask)} more than once"
            elif shift:
                fault = "combines different elements of the inputs"
            elif factored is not None and factored != expression.factored:
                fault = "combines inputs with and without their factor"
            else:
                factored = expression.factored
                averaged = averaged or expression.averaged
            mask |= expression.mask
        return Expression(
            len(self._table) + 1,
            how,
            operands,
            mask=mask,
            op=op,
            factored=bool(factored),
            averaged=averaged,
            fault=fault,
            origin=origin,
        )

    def scale(self, scale: Scale, value: Value, rank: int, origin: StepId) -> Value:
        """`value` times the factor of `rank`, or divided by the number of ranks."""
        expression, shift = value
        if expression.how == "undefined":
            return value
        key = (scale, rank if scale is Scale.FACTOR else None, expression.number)
        found = self._table.get(key)
        if found is None:
            is_factor = scale is Scale.FACTOR
            fault = expression.fault or (
                self._factor_fault(expression, rank) if is_factor else self._average_fault(expression)
            )
            found = self._table[key] = Expression(
                len(self._table) + 1,
                scale.value,
                ((expression, 0),),
                mask=expression.mask,
                op=expression.op,
                factored=is_factor or expression.factored,
                averaged=not is_factor or expression.averaged,
                fault=fault,
                origin=origin,
            )
        return found, shift

    def _factor_fault(self, expression: Expression, rank: int) -> str | None:
        if self._op is not ReduceKind.PREMUL_SUM:
            return f"multiplies by a factor, though the op is {_name(self._op)}"
        if expression.how != "leaf" or expression.mask != 1 << rank:
            return f"multiplies something else than the input of rank {rank} by its factor"
        return None

    def _average_fault(self, expression: Expression) -> str | None:
        if self._op is not ReduceKind.AVG:
            return f"averages, though the op is {_name(self._op)}"
        if expression.averaged:
            return "averages more than once"
        if expression.mask != self._everyone:
            return "averages before everything has been summed"
        return None


def _name(op: ReduceKind | None) -> str:
    return op.value if op is not None else "none"


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def origin_of_fault(expression: Expression) -> StepId | None:
    """The step that made the expression wrong; None if it is not, or is undefined."""
    while expression.fault:
        worse = next((operand for operand, _ in expression.operands if operand.fault), None)
        if worse is None:
            return expression.origin
        expression = worse
    return None


def describe(value: Value, position: int) -> str:
    """What `value` is at `position` of a buffer: 'sum of in0[7], 2 x in1[7]' (in0: the input of rank 0)."""
    expression, shift = value
    if expression.how == "undefined":
        return "nothing defined"
    if expression.how == "gap":
        return f"what was between blocks, at {position + shift}"
    if expression.how == "identity":
        return f"the identity of {_name(expression.op)}"
    leaves = _leaves(expression)
    names = [
        f"{f'{times} x ' if times > 1 else ''}in{rank}[{position + shift + relative}]"
        for (rank, relative), times in sorted(leaves.items())
    ]
    text = ", ".join(names)
    if expression.op is not None:
        text = f"{expression.op.value} of {text or 'nothing'}"
    return f"{text}{', with factors' if expression.factored else ''}{', averaged' if expression.averaged else ''}"


def _leaves(expression: Expression) -> Counter[tuple[int, int]]:
    """How often each (rank, shift) is in an expression."""
    known: dict[int, Counter[tuple[int, int]]] = {}
    stack = [expression]
    while stack:
        node = stack[-1]
        missing = [operand for operand, _ in node.operands if operand.number not in known]
        if missing:
            stack += missing
            continue
        stack.pop()
        found = known[node.number] = Counter()
        if node.how == "leaf":
            found[_lowest(node.mask), 0] = 1
        for operand, shift in node.operands:
            for (rank, relative), times in known[operand.number].items():
                found[rank, relative + shift] += times
    return known[expression.number]
