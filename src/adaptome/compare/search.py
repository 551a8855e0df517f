"""A search for settings: every trial is a run with values from the recipe's ranges, scored on the validation split (Optuna).

<output.folder>/
  trial-<n>/    a run each, as `adaptome train` leaves it
  search.db     Optuna's storage: what was tried and what came of it
  search.json   the table; best.yaml the recipe with the best values

A recipe with stages has its first ones carried out once, and the search is on the last. Killed at any point, the same call goes on: runs that
are finished are not repeated, and the one that was cut off goes on from its last checkpoint. Several processes may work on one search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from adaptome.compare.staged import carry_out_first
from adaptome.core.errors import MissingExtraError, RecipeError, TrainingError
from adaptome.core.files import write_atomic
from adaptome.recipe import RangeSection, Recipe, SearchSection, load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training.arguments import greater_is_better
from adaptome.training.building import read
from adaptome.training.folder import last_checkpoint
from adaptome.training.runs import evaluate, run
from adaptome.training.stages import finished

SEARCH, BEST, STORAGE, NAME = "search.json", "best.yaml", "search.db", "adaptome"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One run: its values, and what came of them.

    Attributes:
        state: 'complete', 'pruned' (stopped early) or 'failed' (with its error).
        value: the metric on validation; of a pruned one the last that was seen.
    """

    number: int
    state: str
    value: float | None
    settings: dict[str, Any]
    folder: str
    error: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found: its trials in order, and the best one's metrics on test where there is such a split."""

    folder: str
    metric: str
    greater_is_better: bool
    trials: list[Trial]
    test: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial with the best value.

        Raises:
            TrainingError: none was completed.
        """
        done = [t for t in self.trials if t.state == "complete" and t.value is not None]
        if not done:
            told = next((t.error for t in self.trials if t.error), "all were stopped early")
            raise TrainingError(f"no trial of the search in {self.folder} was completed: {told}.")
        return (max if self.greater_is_better else min)(done, key=lambda t: t.value or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of search.json."""
        return {**asdict(self), "best": asdict(self.best)}


def search(
    recipe: Recipe | str | Path, tell: Tell | None = None, callbacks: Sequence[TrainerCallback] | None = None
) -> SearchResult:
    """Carry out a recipe's `search` section, or go on with it.

    Args:
        recipe: a recipe, its path, or the name of one that comes with adaptome.
        tell: is given a line before each run.
        callbacks: of each run, as `training.run` takes them.

    Raises:
        RecipeError: there is nothing to search for, a key or value that is not valid, or no validation split.
        TrainingError: the folder holds a search of another recipe, or no trial was completed.
        MissingExtraError: Optuna is not installed.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.search is None:
        raise RecipeError(
            "there is nothing to search for: give search.ranges, e.g. search: {ranges: {training.learning_rate: {low: 5e-5, high: 5e-4, log: true}}}."
        )
    section, folder = recipe.search, Path(recipe.output.folder)
    task = get_task(_last(recipe).task.name, **_last(recipe).task.settings)
    metric = section.metric or task.headline
    greater = greater_is_better(metric, task)
    for values in ({key: ends(r)[n] for key, r in section.ranges.items()} for n in (0, 1)):
        _recipe(
            _last(recipe), values, folder / "trial"
        )  # a key that is not valid is told before anything is trained
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(recipe, section, folder, greater)
    base = _last(recipe)
    carry_out_first(recipe, callbacks, tell)
    while (turn := _next(study, section, folder)) is not None:
        trial, lock = turn
        with lock:
            if tell is not None:
                done = len(_counted(study))
                tell(
                    f"trial {trial.number} ({done + 1} of {section.trials}): {_words(_settings(trial.params))}"
                )
            _carry_out(study, trial, base, metric, callbacks)
    made = SearchResult(str(folder), metric, greater, [_told(t) for t in _counted(study)])
    best = made.best
    if "test" in read(base, task):
        made = SearchResult(made.folder, metric, greater, made.trials, evaluate(best.folder, "test"))
    write_atomic(
        folder / BEST, _recipe(base, best.settings, folder / "best", base.evaluation.split).to_yaml()
    )
    write_atomic(folder / SEARCH, json.dumps(made.to_dict(), indent=1))
    return made


def ends(values: RangeSection) -> tuple[Any, Any]:
    """The first and the last value of a range."""
    return (
        (values.choices[0], values.choices[-1]) if values.choices is not None else (values.low, values.high)
    )


def _last(recipe: Recipe) -> Recipe:
    """The recipe of the runs that are searched over: of a recipe with stages the last one's."""
    return stages_of(recipe)[-1][1] if recipe.stages else recipe.model_copy(update={"search": None})


def _recipe(base: Recipe, values: Mapping[str, Any], folder: Path, split: Any = "validation") -> Recipe:
    """The recipe of one run, scored on validation."""
    changes = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    made = load_recipe(base.model_dump(mode="json", exclude_defaults=True, exclude={"search"}), changes)
    output = made.output.model_copy(update={"folder": str(folder)})
    evaluation = made.evaluation.model_copy(update={"split": split})
    return made.model_copy(update={"output": output, "evaluation": evaluation})


# -- Optuna ------------------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise MissingExtraError("optuna", "search") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(recipe: Recipe, section: SearchSection, folder: Path, greater: bool) -> Any:
    """The study in the storage, new or found there; refused when it is of another recipe."""
    optuna = _optuna()
    pruner = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=section.warmup_trials),
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "none": optuna.pruners.NopPruner,
    }[section.pruner]()
    content = recipe.model_dump(mode="json", exclude={"output"})
    for key in ("trials", "storage"):  # a search may be made longer, and its storage moved
        content["search"].pop(key)
    content["training"].pop("resume")
    mark = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    study = optuna.create_study(
        storage=section.storage or f"sqlite:///{(folder / STORAGE).resolve()}",
        study_name=NAME if section.storage is None else str(folder),
        direction="maximize" if greater else "minimize",
        pruner=pruner,
        load_if_exists=True,
    )
    known = study.user_attrs.get("recipe")
    if known not in (None, mark):
        raise TrainingError(
            f"{folder} holds a search of another recipe or of other ranges.\n  Choose another output.folder, or take the recipe as it was: only search.trials may change."
        )
    study.set_user_attr("recipe", mark)
    return study


def _sampler(section: SearchSection, number: int) -> Any:
    """Of one trial: its draw hangs on the seed and on how many were before, so that a search that was cut off draws nothing twice."""
    samplers, seed = _optuna().samplers, section.seed * 100_003 + number
    if section.sampler == "gp":
        return samplers.GPSampler(seed=seed)
    return (
        samplers.RandomSampler(seed=seed) if section.sampler == "random" else samplers.TPESampler(seed=seed)
    )


def _counted(study: Any) -> list[Any]:
    """The trials with an outcome; those that were cut off have none, and another took their values over."""
    states = _optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state in (states.COMPLETE, states.PRUNED) or "error" in t.user_attrs]


def _next(study: Any, section: SearchSection, folder: Path) -> tuple[Any, FileLock] | None:
    """The next trial with the lock of its folder, which its process holds while it lives; None when there are enough."""
    states = _optuna().trial.TrialState
    with FileLock(folder / "search.lock"):
        alive = 0
        for cut in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            place = _folder(cut, folder)
            try:
                with FileLock(place.with_suffix(".lock"), timeout=0):
                    values = {key: cut.params[key] for key in section.ranges if key in cut.params}
                    waiting = study.get_trials(deepcopy=False, states=(states.WAITING,))
                    if values and not any(_folder(t, folder) == place for t in waiting):
                        study.enqueue_trial(values, user_attrs={"folder": str(place)})
                    study.tell(cut.number, state=states.FAIL)
            except Timeout:
                alive += 1
        begun = len(_counted(study)) + alive
        if begun >= section.trials:
            return None
        study.sampler = _sampler(section, begun)
        trial = study.ask()
        place = _folder(trial, folder)
        lock = FileLock(place.with_suffix(".lock"), thread_local=False)
        lock.acquire()
        trial.set_user_attr("folder", str(place))
        for key, choices in section.ranges.items():
            _suggest(trial, key, choices)
        return trial, lock


def _suggest(trial: Any, key: str, values: RangeSection) -> None:
    if values.choices is not None:  # as JSON: lists and mappings are choices too
        trial.suggest_categorical(key, [json.dumps(choice) for choice in values.choices])
    elif values.type == "int":
        trial.suggest_int(key, values.low, values.high, step=int(values.step or 1), log=values.log)
    else:
        trial.suggest_float(key, float(values.low or 0), float(values.high or 0), step=values.step, log=values.log)  # fmt: skip


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the recipe takes them."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}


def _folder(trial: Any, folder: Path) -> Path:
    return Path(trial.user_attrs.get("folder") or folder / f"trial-{trial.number}")


# -- one trial -----------------------------------------------------------------------------------------------------------


class _Reports(TrainerCallback):
    """Tells the study how a run does, and ends one that is behind."""

    def __init__(self, trial: Any, metric: str):
        self.trial, self.metric = trial, metric

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        value = (metrics or {}).get(f"eval_{self.metric}")
        if value is None:
            return
        self.trial.report(float(value), state.global_step)
        if self.trial.should_prune():
            raise _optuna().TrialPruned()


def _carry_out(
    study: Any, trial: Any, base: Recipe, metric: str, callbacks: Sequence[TrainerCallback] | None
) -> None:
    """Run a trial and tell the study; what an earlier process did of it is not done again."""
    optuna, states = _optuna(), _optuna().trial.TrialState
    place = Path(trial.user_attrs["folder"])
    twin = next((t for t in _counted(study) if t.state == states.COMPLETE and t.params == trial.params), None)
    if twin is not None:  # ranges of few values: the same run would give the same value
        trial.set_user_attr("folder", twin.user_attrs["folder"])
        study.tell(trial, twin.value)
        return
    recipe = _recipe(base, _settings(trial.params), place)
    result = finished(place)
    if result is None:
        going_on = last_checkpoint(place) is not None
        training = recipe.training.model_copy(update={"resume": going_on})
        output = recipe.output.model_copy(update={"overwrite": not going_on})
        recipe = recipe.model_copy(update={"training": training, "output": output})
        try:
            result = run(recipe, [*(callbacks or []), _Reports(trial, metric)])
        except optuna.TrialPruned:
            study.tell(trial, state=states.PRUNED)
            return
        except TrainingError as error:  # the loss became NaN: these values are no good, others may be
            trial.set_user_attr("error", str(error).split("\n")[0])
            study.tell(trial, state=states.FAIL)
            return
    if metric not in result.metrics:
        there = ", ".join(result.metrics) or "none"
        raise RecipeError(f"search.metric={metric!r}: the runs have no such metric. They have: {there}.")
    study.tell(trial, result.metrics[metric])


def _told(trial: Any) -> Trial:
    states = _optuna().trial.TrialState
    state = {states.COMPLETE: "complete", states.PRUNED: "pruned"}.get(trial.state, "failed")
    return Trial(
        trial.number,
        state,
        trial.value,
        _settings(trial.params),
        trial.user_attrs["folder"],
        trial.user_attrs.get("error"),
    )


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items())  # fmt: skip
