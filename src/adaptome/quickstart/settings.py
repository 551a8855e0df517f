"""What a quickstart does: its methods and its settings. All were chosen on the validation split."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PROBE = "probe"
WARM_UP = 0.06  # share of the steps in which the learning rates rise
WEIGHT_DECAY = 0.01
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Settings:
    """Settings of the whole comparison; they are written into metrics.json and the report.

    Args:
        labels, per_label: size of the task, see `adaptome.data.stdlib_docstrings`.
        methods: "probe" trains the head alone; every other name is a method of adaptome.
        options: of a method: its settings, and `targets` as `ad.attach` takes them.
        epochs, batch_size: passes over the training split, and examples in a step.
        learning_rate, head_learning_rate: of the adapter and of the head, at their highest.
        max_tokens: longer texts are cut.
        seed: of the adapters' start, the order of the examples and dropout.
        threads: of PyTorch in each run; None takes every core this process may use.
        sentence: what is predicted at the end by an adapter that a new process loads.
    """

    labels: int = 16
    per_label: int = 200
    methods: tuple[str, ...] = ("probe", "lora", "parallel")
    options: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "lora": {"r": 8, "alpha": 16, "targets": "all-linear"},
            "parallel": {"size": 32},  # on the two maps of every MLP
        }
    )
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 2e-3
    head_learning_rate: float = 1e-2
    max_tokens: int = 48
    seed: int = 0
    threads: int | None = None
    sentence: str = "Schedule the coroutine on the event loop and wait until it has finished."

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "methods": list(self.methods)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The settings that `to_dict` gave, also after JSON."""
        return cls(**{**values, "methods": tuple(values["methods"])})
