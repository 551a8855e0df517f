"""Settings of methods: declared with a default, bounds and a word of what they do; taken as their annotated type, or refused."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from adaptome.core.errors import MethodError, did_you_mean


def option(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    help: str = "",
) -> Any:
    """A setting of a method: its default, its bounds and what it does."""
    bounds = {
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "choices": tuple(choices) if choices else None,
    }
    return dataclasses.field(
        default=default, metadata={"help": help, **{k: v for k, v in bounds.items() if v is not None}}
    )


def type_name(hint: Any) -> str:
    """A setting's type as it is written in code: `int`, `float | 'learned'`."""
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(type_name, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """The value as its annotated type; ints pass for floats, lists for tuples."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is Literal:
            if value in typing.get_args(kind):
                return value
        elif origin is type(None) or kind is None:
            if value is None:
                return None
        elif origin is tuple and isinstance(value, (list, tuple)):
            inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
            return tuple(coerce(v, inner[0], where) if inner else v for v in value)
        elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if not abs(value) < 1e300:
                raise MethodError(f"{where} = {value!r} must be a finite number.")
            return float(value)
        elif (
            origin in (int, str, bool, dict)
            and isinstance(value, origin)
            and (origin is not int or not isinstance(value, bool))
        ):
            return value
    options = [repr(a) for k in kinds if typing.get_origin(k) is Literal for a in typing.get_args(k)]
    wanted = " or ".join(options or [getattr(k, "__name__", str(k)) for k in kinds])
    raise MethodError(
        f"{where} = {value!r} is a {type(value).__name__}; it must be {wanted}.{did_you_mean(str(value), [o.strip(chr(39)) for o in options])}"
    )


def check_bounds(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    tests: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "at_least": (lambda v, b: v >= b, "at least"),
        "above": (lambda v, b: v > b, "above"),
        "at_most": (lambda v, b: v <= b, "at most"),
        "below": (lambda v, b: v < b, "below"),
        "choices": (lambda v, b: v in b, "one of"),
    }
    for key, (holds, words) in tests.items():
        if key in bounds and isinstance(value, (int, float, str)) and not holds(value, bounds[key]):
            raise MethodError(f"{where} = {value!r} must be {words} {bounds[key]!r}.")


def nearest_divisor(width: int, wanted: int, least: int = 2) -> int:
    """The divisor of `width` from `least` on that is nearest to `wanted`; of two as near, the smaller. `wanted` where there is none."""
    divisors = (d for d in range(least, width + 1) if width % d == 0)
    return min(divisors, key=lambda d: abs(d - wanted), default=wanted)
