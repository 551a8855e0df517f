"""Variants of a comparison said in one word each: `data.limit=[100,1000]`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from adaptome.core.errors import RecipeError


def variants_of(said: Sequence[str]) -> list[dict[str, Any]]:
    """Variants, as `compare.variants` has them: every combination of the values of all keys.

    Raises:
        RecipeError: no key with a list of values.

    >>> variants_of(["data.limit=[100, 1000]"])[0]
    {'label': 'limit=100', 'set': {'data.limit': 100}}
    """
    keys, lists = [], []
    for one in said:
        key, equals, text = one.partition("=")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            values = None
        if not (key and equals and isinstance(values, list) and values):
            raise RecipeError(
                f"--vary {one!r}: a key and a list of values is expected, as --vary data.limit=[100,1000]."
            )
        keys.append(key)
        lists.append(values)
    made = []
    for values in itertools.product(*lists):
        label = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in zip(keys, values, strict=True))
        made.append({"label": label, "set": dict(zip(keys, values, strict=True))})
    return made
