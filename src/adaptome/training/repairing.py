"""`methods.N.repair`: an adapter that begins at what quantising the base lost, rather than at nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import adaptome as ad
from adaptome.core.errors import RecipeError
from adaptome.recipe import MethodSection
from adaptome.tasks import Task


def repaired(
    section: MethodSection,
    name: str,
    model: nn.Module,
    full: nn.Module,
    batches: Sequence[Any] | None,
    where: dict[str, Any],
) -> Any:
    """Attach the section's method where the quantised model and the full one differ least.

    Args:
        section: with `repair`.
        name: of the adapter.
        model: the quantised base. full: the same model before.
        batches: calibration data; None to measure by the weights alone.
        where: further arguments of `ad.attach`.

    Returns:
        the plan, and how much of the error is left, in words.

    Raises:
        RecipeError: a method without such a start.
    """
    method: Any = ad.get_method(section.name, **section.settings)
    targets = where.pop("targets") or "all-linear"
    if narrowed := [
        k for k in ("exclude", "layers", "per_layer", "budget") if where.pop(k, None) not in (None, {})
    ]:
        raise RecipeError(f"method.repair goes with targets alone, not with {', '.join(narrowed)}.")
    if section.name == "qwha":
        report = ad.qwha(model, full, method, targets, name, batches=batches, **where)
    elif section.name == "lora" and batches is not None:
        report = ad.cloq(model, full, batches, method, targets, name, **where)
    elif section.name == "lora":
        return ad.loftq(
            model, full, method, targets, name, **where
        ), "begins at the leading part of what quantising lost."
    else:
        raise RecipeError(
            f"method.repair: {section.name} has no start at what quantising lost; qwha and lora have."
        )
    before, after = (sum(getattr(x, key) for x in report.layers) for key in ("before", "after"))
    seconds = sum(x.seconds for x in report.layers)
    told = f"begins with {after / max(before, 1e-30):.0%} of the error that quantising made, {seconds / len(report.layers):.2f} s a layer."
    return report.plan, told


def full_model(section: MethodSection, task: Task, processor: Any, found: Any) -> nn.Module:
    """The base as it was before it was quantised: the recipe's own without `quantization`, or the one that `repair.full` names.

    Args:
        found: the model section that the base was loaded by.

    Raises:
        RecipeError: the recipe does not quantise its base, and no full one is named.
    """
    assert section.repair is not None
    change: dict[str, Any] = {"quantization": None}
    if section.repair.full is not None:
        change |= {"name": section.repair.full, "from_config": None}
    elif found.quantization is None:
        raise RecipeError(
            "method.repair needs the weights before they were quantised: let the recipe quantise (model.quantization), or name the full model (method.repair.full)."
        )
    return task.load_model(found.model_copy(update=change), processor)


def calibration(task: Task, rows: Any, processor: Any, count: int) -> list[dict[str, Tensor]] | None:
    """The first training examples, each a batch; None for a count of 0.

    Raises:
        RecipeError: a task whose examples cannot be read so.
    """
    if count == 0:
        return None
    read = getattr(task, "calibration", None)
    if read is None:
        raise RecipeError(
            f"method.repair.examples={count}: {task.name} gives no examples to measure on; causal-lm does.\n  Give examples: 0, which measures by the weights."
        )
    made: list[dict[str, Tensor]] = read(rows, processor, count)
    return made
