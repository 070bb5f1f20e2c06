"""The rows of the collectives against the methods they describe."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import hetcomm
from hetcomm.calls.spec import EXPLAINED, SPECS, CollectiveSpec
from hetcomm.schedule.collective import CollectiveKind

EVERY = pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)


def positional(method: str) -> tuple[str, ...]:
    """The arguments of a method that may be passed by position."""
    parameters = inspect.signature(getattr(hetcomm.Communicator, method)).parameters.values()
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self")


@EVERY
def test_the_methods_take_what_their_row_says(spec: CollectiveSpec) -> None:
    wanted = () if spec.control else spec.arguments
    assert positional(spec.name) == wanted
    assert positional(f"{spec.name}_init") == wanted
    assert tuple(inspect.signature(spec.check).parameters)[-2:] == ("rank", "nranks")


def test_every_collective_has_a_row_and_its_vector_form_too() -> None:
    names = {kind.value for kind in CollectiveKind}
    vectors = {f"{kind.value}_v" for kind in CollectiveKind if kind.has_blocks}
    assert set(SPECS) == names | vectors | {"barrier"}
    assert set(EXPLAINED) == names | vectors - {"all_to_all_v"}
    keys = [spec.key for spec in SPECS.values() if spec.key is not None]
    assert len(set(keys)) == len(keys)


def test_arguments_for_the_fast_path() -> None:
    x, y, op = np.zeros(1), np.ones(1), "sum"
    assert SPECS["all_reduce"].fast((x, y, op)) == (x, y, op, None)
    assert SPECS["broadcast"].fast((x, 3)) == (x, None, 3, None)
    assert SPECS["reduce_scatter"].fast((x, None, 4, op)) == (x, None, 4, op)
    assert SPECS["all_to_all"].fast((x, y)) == (x, y, None, None)
