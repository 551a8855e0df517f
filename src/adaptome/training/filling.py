"""Adapters that hold training examples, such as Tip-Adapter's cache: their sizes, and filling them before training begins."""

from __future__ import annotations

from typing import Any

from torch import nn

import adaptome as ad
from adaptome.core.errors import RecipeError
from adaptome.core.state import attachment_of
from adaptome.recipe import MethodSection
from adaptome.tasks import Prepared
from adaptome.tasks.inference import chunks, evaluating, to_device


def sized(section: MethodSection, rows: Any) -> dict[str, Any]:
    """The section's settings, with the number of training examples where its method counts them and the recipe does not say it."""
    counted = ad.get_method(section.name, **section.settings).counts_examples
    if not counted or rows is None or section.settings.get(counted) is not None:
        return section.settings
    return {**section.settings, counted: len(rows)}


def fill(model: nn.Module, names: list[str], data: Prepared, size: int = 64) -> list[str]:
    """Run the training rows through the model, for the adapters that take them up.

    Args:
        names: of the adapters. size: rows at a time.

    Returns:
        what was filled, in words.

    Raises:
        RecipeError: the rows are not such as a model takes in batches with labels.
    """
    found = [a for name in names for a in attachment_of(model, name).adapters.values() if a.takes_examples]
    rows = data.get("train")
    if not found or rows is None:
        return []
    if data.collator is None:
        raise RecipeError(
            "methods: one of them takes up training examples, and this task gives no batches of them."
        )
    for adapter in found:
        adapter.begin_taking()
    whole = False
    try:
        with evaluating(model) as device:
            for part in chunks(range(len(rows)), size):
                batch = to_device(data.collator([rows[i] for i in part]), device)
                with ad.steer(labels=batch.get("labels")):
                    model(**{key: value for key, value in batch.items() if key not in data.aside})
        whole = True
    finally:
        for adapter in found:
            adapter.end_taking(whole)
    return [
        f"{len(rows)} training examples were taken up by {', '.join(sorted({a.host.name for a in found}))}."
    ]
