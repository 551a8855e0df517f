"""Training: recipe -> Trainer -> checkpoint.

    from adaptome.training import AdaptomeTrainer, run
    run("recipe.yaml")                                  # a folder with the adapter and its metrics
    AdaptomeTrainer(model, args, train_dataset=data)    # transformers' Trainer, for a model with adapters

transformers, and TRL for fine-tuning chat models, are imported when one of these is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from adaptome.core.errors import MissingExtraError

_HOME = {
    "AdapterCheckpoints": "trainer",
    "AdaptomeTrainer": "trainer",
    "AdaptomeSFTTrainer": "sft",
    "FoldsResult": "folds",
    "Result": "runs",
    "StagesResult": "stages",
    "calibration": "runs",
    "evaluate": "runs",
    "keep_freed_memory": "allocator",
    "last_checkpoint": "folder",
    "load_run": "runs",
    "plans": "runs",
    "predict": "runs",
    "ranked": "ranking",
    "run": "runs",
    "run_continual": "continual",
    "run_folds": "folds",
    "run_stages": "stages",
    "write_report": "page",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("transformers", "accelerate", "datasets", "pydantic"):
            raise MissingExtraError(str(error.name), "train") from error
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value
