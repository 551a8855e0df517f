"""What a model learns of worked answers: a comparison whose rows are one recipe on traces that are spoiled, each in one way by one share.

The study of Li et al. 2025, arXiv:2502.07374, section 5, over any recipe of the task `long-reasoning`:

<output.folder>/perturbed/
  <row>/seed-<n>/     a finished run each, and comparison.json, report.html, ...: see `compare.study`
  perturbation.json   the table by kind and share
  perturbation.html   the same to look at

Begun again, it goes on where it stopped, as every comparison does.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptome.compare.staged import carry_out_first
from adaptome.compare.study import compare
from adaptome.compare.table import Comparison, Row, half_width
from adaptome.core.errors import RecipeError, did_you_mean
from adaptome.core.files import write_atomic
from adaptome.recipe import ComparedMethod, CompareSection, Recipe, VariantSection, load_recipe, stages_of
from adaptome.report import Curves, Report
from adaptome.tasks import get_task
from adaptome.traces import HOW, STRUCTURAL, rates

TABLE, PAGE, WHOLE = "perturbation.json", "perturbation.html", "correct traces"
SIGNS = ("unread", "tokens", "keywords", "well_formed", "opens_with_keyword")


@dataclass(frozen=True)
class Spoiled:
    """A row of the study.

    Attributes:
        label: its name; how, share: None for whole traces.
        mean, half: accuracy over the seeds, and half of its 95 % interval (None with one seed); values: of every seed.
        lost, lost_half: what whole traces are ahead by, seed by seed, and half of its interval.
        signs: means of what else was measured of the texts.
    """

    label: str
    how: str | None
    share: float | None
    values: list[float]
    mean: float
    half: float | None
    lost: float
    lost_half: float | None
    signs: dict[str, float]


@dataclass(frozen=True)
class Study:
    """The study: its rows in the paper's order, and the base that none of them trained."""

    folder: str
    metric: str
    seeds: list[int]
    base: float
    rows: list[Spoiled]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of perturbation.json."""
        return {**asdict(self), "content": self.lost("content"), "structure": self.lost("structure")}

    def lost(self, what: str) -> float | None:
        """What is lost on average over the rows of 'content' or of 'structure'; None where there are none."""
        found = [
            row.lost for row in self.rows if row.how and (row.how in STRUCTURAL) == (what == "structure")
        ]
        return statistics.fmean(found) if found else None


def perturbation_study(
    recipe: Recipe | str | Path,
    kinds: Sequence[str] = (),
    seeds: int = 3,
    tell: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] | None = None,
    **options: Any,
) -> Study:
    """Train a recipe on whole traces and on every kind of spoiled ones, and write the tables.

    Args:
        recipe: of the task `long-reasoning`, or with stages whose last one is.
        kinds: of `traces.HOW`, each alone at the paper's shares, or with a share of its own as 'shuffle:0.5'; none for all.
        seeds: how many, from 0: the adapter's start, the order of the data, and what is spoiled.
        tell, callbacks, options: as of `compare`.

    Raises:
        RecipeError: another task, a kind that there is not, or several methods; and what `compare` raises.
    """
    read = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    last = stages_of(read)[-1][1] if read.stages else read
    task = get_task(last.task.name, **last.task.settings)
    if "perturb" not in type(task).Options.model_fields:
        raise RecipeError(
            f"the task {last.task.name!r} learns no traces that could be spoiled. A recipe of the task long-reasoning does: long-cot-demo."
        )
    if len(last.methods) != 1:
        raise RecipeError("a study of perturbations is of one method: give the recipe one.")
    asked = asked_of(kinds)
    method = ComparedMethod.model_validate(last.methods[0].model_dump(exclude_unset=True))
    nothing = {"how": "shuffle", "share": 0.0}
    whole = VariantSection(label=WHOLE, set={"task.perturb": nothing, "task.measure_before": True})
    spoiled = [
        VariantSection(label=name, set={"task.perturb": {"how": how, "share": share}})
        for name, (how, share) in asked.items()
    ]
    section = CompareSection(
        methods=[method],
        variants=[whole, *spoiled],
        seeds=list(range(seeds)),
        seeded=["task.perturb.seed"],
        metric=task.headline,
    )
    own = Path(read.output.folder) / "perturbed"
    carry_out_first(read, callbacks, tell)
    output = read.output.model_copy(update={"folder": str(own)})
    one = last.model_copy(update={"compare": section, "output": output, "title": read.title})
    found = compare(one, tell, callbacks, **options)
    made = _study(found, asked)
    folder = Path(made.folder)
    write_atomic(folder / TABLE, json.dumps(made.to_dict(), indent=1))
    _page(made, read.title).write(folder / PAGE)
    return made


def asked_of(kinds: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Name -> kind and share of the rows that are asked for.

    Raises:
        RecipeError: a kind that there is not, or a share that is none.
    """
    asked: list[tuple[str, float]] = []
    for one in kinds:
        how, colon, text = one.partition(":")
        if how not in HOW:
            raise RecipeError(
                f"there is no perturbation {how!r}.{did_you_mean(how, HOW)} There are: {', '.join(HOW)}."
            )
        try:
            shares = (float(text),) if colon else HOW[how]
        except ValueError:
            shares = (-1.0,)
        if not all(0 < share <= 1 for share in shares):
            raise RecipeError(f"{one!r}: a share is above 0 and at most 1, as {how}:{HOW[how][0]:g}.")
        asked += [(how, share) for share in shares]
    return {f"{how} {share:.0%}": (how, share) for how, share in asked or rates()}


def _study(found: Comparison, asked: Mapping[str, tuple[str, float]]) -> Study:
    of = {row.label: row for row in found.rows}
    whole = of[WHOLE]

    def told(label: str, row: Row) -> Spoiled:
        lost = [a - b for a, b in zip(whole.values, row.values, strict=True)]
        how, share = asked.get(label, (None, None))
        signs = {name: row.metrics[name] for name in SIGNS if name in row.metrics}
        return Spoiled(label, how, share, row.values, row.mean, half_width(row.values), statistics.fmean(lost), half_width(lost), signs)  # fmt: skip

    base = whole.metrics[f"{found.metric}_before"]
    return Study(
        found.folder, found.metric, found.seeds, base, [told(label, row) for label, row in of.items()]
    )


def _page(study: Study, title: str | None) -> Report:
    """The table, and accuracy by the share that is spoiled."""
    whole, seeds = study.rows[0], len(study.seeds)
    lead = f"{len(study.rows) - 1} ways of spoiling the traces, {seeds} seed{'s' * (seeds > 1)} each; {study.metric} on held-out questions."
    report = Report(f"{title or 'Traces'}: what is learned of them", lead).section("Results")
    facts = {
        f"{study.metric} of {WHOLE}": format(whole.mean, ".1%"),
        "of the base": format(study.base, ".1%"),
    }
    for what in ("content", "structure"):
        lost = study.lost(what)
        if lost is not None:
            facts[f"lost on average where {what} is spoiled"] = format(lost, ".1%")
    report.facts(facts)
    report.table(
        [
            {
                "traces": row.label,
                study.metric: row.mean,
                "±": row.half,
                "lost": row.lost,
                "± of it": row.lost_half,
                **{name.replace("_", " "): value for name, value in row.signs.items()},
            }
            for row in study.rows
        ],
        caption=f"{study.metric} by perturbation, means over the seeds; ± is half of a 95 % interval",
        formats={
            study.metric: ".1%", "±": ".1%", "lost": "+.1%", "± of it": ".1%", "unread": ".1%", "tokens": ",.1f",
            "keywords": ",.2f", "well formed": ".1%", "opens with keyword": ".1%",
        },
    )  # fmt: skip
    curves = {
        how: [
            (0.0, whole.mean),
            *((row.share, row.mean) for row in study.rows if row.how == how and row.share),
        ]
        for how in HOW
        if any(row.how == how for row in study.rows)
    }
    if curves:
        report.section(
            "By share", f"{study.metric} by how much of the traces is spoiled; all curves begin at {WHOLE}."
        )
        report.curves(Curves(study.metric, curves, "share spoiled", study.metric))
    return report
