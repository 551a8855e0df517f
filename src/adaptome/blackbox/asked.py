"""A black box behind its cache: every text is asked once, every call is counted, and a budget is never passed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptome.blackbox.base import BlackBox
from adaptome.blackbox.store import Store
from adaptome.core.errors import AdaptomeError, BlackBoxError


class Asked:
    """What a black box says, from the cache where it has said it before.

    Args:
        box: the black box.
        folder: of the cache.
        budget: calls that may be made in all, those of earlier runs on the same cache included; None for no limit.
        dtype: in which answers are kept.

    Attributes:
        calls: made by this object; `spent` counts all that the cache holds.
    """

    def __init__(
        self, box: BlackBox, folder: str | Path, budget: int | None = None, dtype: torch.dtype = torch.float16
    ):
        self.box, self.budget, self.calls = box, budget, 0
        self.store = Store(folder, box.identity(), dtype)

    @property
    def spent(self) -> int:
        """Calls ever made to this black box through this cache; a text is a call."""
        return self.store.calls

    def ask(self, texts: Sequence[str]) -> None:
        """Have all these texts in the cache; those that are not are asked, batch by batch.

        Raises:
            BlackBoxError: the budget does not suffice (nothing is asked then), or the black box does not answer; what it said before
                is kept, and asking again goes on from there.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.store]
        if self.budget is not None and self.spent + len(new) > self.budget:
            raise BlackBoxError(
                f"{len(new)} texts are to be asked, {self.spent} calls were made before, and task.budget is {self.budget}.\n"
                f"  Nothing was asked. Raise it to {self.spent + len(new)}, or take fewer texts (data.shots, data.limit)."
            )
        size = self.box.settings.batch_size
        for start in range(0, len(new), size):
            part = new[start : start + size]
            try:
                made = self._answers(part)
            except AdaptomeError as error:
                raise BlackBoxError(
                    f"{error}\n  {start} of {len(new)} texts were answered and are kept in {self.store.folder}; the same call goes on from there."
                ) from error
            self.store.put(dict(zip(part, made, strict=True)))
            self.calls += len(part)

    def _answers(self, part: list[str]) -> list[Tensor]:
        made = self.box.states(part)
        if len(made) != len(part):
            raise BlackBoxError(
                f"the black box {self.box.name or 'callable'} gave {len(made)} answers to {len(part)} texts."
            )
        for text, one in zip(part, made, strict=True):
            if one.dim() != 2 or not len(one):
                raise BlackBoxError(
                    f"the answer to {text[:60]!r} is of shape {tuple(one.shape)}; expected [tokens, width]."
                )
            if not torch.isfinite(one.to(self.store.dtype)).all():
                raise BlackBoxError(
                    f"the answer to {text[:60]!r} has numbers that {self.store.dtype} cannot hold. Set task.keep=float32."
                )
        return made

    def states(self, text: str) -> Tensor:
        """What is said of a text, [tokens, width]; asked where it was not.

        Raises:
            BlackBoxError: see `ask`.
        """
        if text not in self.store:
            self.ask([text])
        return self.store[text]

    def save_pretrained(self, folder: Any, **kwargs: Any) -> None:
        """Nothing: a black box stays where it is. (Trainers write what makes their inputs beside a model.)"""
