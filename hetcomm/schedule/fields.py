"""The fields of a document that came from outside, read one by one: each is what it should be, or `Malformed`.

Nothing here trusts its argument: it may be of any type, of any size and nested to any depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

__all__ = ["Malformed", "check_keys", "integer", "integers", "items", "mapping", "member", "natural", "shown", "typed"]

E = TypeVar("E", bound=Enum)
_LIMIT = 1 << 63  # sums of what a document holds then stay far below what the verifier counts with


class Malformed(Exception):
    """Something in the document is not what it should be; whoever reads the document adds where."""


def shown(value: Any) -> str:
    """A value in an error message, however large or deep it is."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if type(value) is int and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def typed(value: Any, kind: type[Any]) -> Any:
    """A value of exactly this type: True is no int."""
    if type(value) is not kind:
        raise Malformed(f"{shown(value)} is not of type {kind.__name__}")
    return value


def integer(value: Any) -> int:
    """A number that verifier and planners can count with."""
    number: int = typed(value, int)
    if not -_LIMIT < number < _LIMIT:
        raise Malformed(f"{shown(value)} is beyond all counts: numbers have less than 2^63")
    return number


def natural(value: Any) -> int:
    """An integer that is not negative."""
    number = integer(value)
    if number < 0:
        raise Malformed(f"{shown(value)} is negative")
    return number


def items(value: Any) -> list[Any]:
    """A list, of anything."""
    found: list[Any] = typed(value, list)
    return found


def integers(value: Any) -> tuple[int, ...] | None:
    """A list of integers, or null."""
    return tuple(integer(number) for number in items(value)) if value is not None else None


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, of anything."""
    if not isinstance(value, Mapping):
        raise Malformed(f"{shown(value)} is not an object")
    return value


def check_keys(entry: Any, keys: tuple[str, ...]) -> None:
    """Raises `Malformed` unless `entry` is an object with just these keys."""
    found = mapping(entry)
    if len(found) != len(keys) or not all(key in found for key in keys):
        named = sorted(map(shown, found))
        text = ", ".join(named[:20]) + (", ..." if len(named) > 20 else "")
        raise Malformed(f"the keys are {text or 'none'} instead of {', '.join(map(repr, sorted(keys)))}")


def member(kind: type[E], value: Any) -> E:
    """The member of an enumeration that has this string as its value."""
    if isinstance(value, str):
        for found in kind:
            if found.value == value:
                return found
    raise Malformed(f"{shown(value)} is none of {', '.join(repr(each.value) for each in kind)}")
