"""The report of finished runs: what of a run's folder stands on the page, for one run, for stages, for several side by side."""

import json
import re
from html import unescape

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from adaptome.cli._app import build
from adaptome.core.errors import TrainingError
from adaptome.report import Ranked, Shown, Span
from adaptome.tasks import get_task
from adaptome.tasks.scores import softmax_scores
from adaptome.training.examples import (
    Example,
    examples_of,
    read_examples,
    write_examples,
    write_scores,
)
from adaptome.training.page import finished_runs, write_report
from adaptome.training.runs import Result

HISTORY = [
    {"step": 10, "loss": 2.0, "loss/model": 1.5, "loss/align-uniform": 0.5, "learning_rate": 1e-3},
    {"step": 10, "eval_accuracy": 0.5, "eval_loss": 1.0, "eval_runtime": 3.0, "eval_loss/model": 1.0},
    {"step": 20, "loss": 1.0, "loss/model": 0.9, "loss/align-uniform": 0.1, "learning_rate": 0.0},
    {"step": 20, "eval_accuracy": 0.75, "eval_loss": 0.5, "eval_runtime": 3.0, "eval_loss/model": 0.5},
]


def finished(folder, method="lora", title="", **changes):
    """The folder of a run, without what only training needs."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "folder": str(folder), "adapter": "a", "task": "text-classification", "method": method, "split": "test",
        "metrics": {"loss": 0.4, "accuracy": 0.8125}, "history": HISTORY, "trainable_parameters": 1234,
        "total_parameters": 100_000, "steps": 20, "best_step": 20, "seconds": 12.5, "peak_memory_bytes": 300 * 2**20,
        "notes": ["3 rows were <cut>"], **changes,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(Result(**given).to_dict()))
    (folder / "recipe.yaml").write_text(
        f"title: {title or folder.name}\ntask: {{name: text-classification}}\n"
    )
    return folder


def words(page):
    """The page without its tags."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8"))))


def descriptions(page):
    """What the drawings say of themselves, by title."""
    html = page.read_text(encoding="utf-8")
    found = re.findall(r"<title[^>]*>([^<]*)</title><desc[^>]*>([^<]*)</desc>", html)
    return {unescape(title): unescape(told) for title, told in found}


def test_one_run_has_its_figures_curves_by_term_notes_and_recipe(tmp_path):
    page = write_report([finished(tmp_path / "one", title="Cats & dogs")])
    assert page == tmp_path / "one" / "report.html"
    told, drawn = words(page), descriptions(page)
    for part in ("Cats & dogs", "accuracy on test 0.8125", "1,234", "1.234%", "12.5 s", "300 MiB", "Note: 3 rows were <cut>", "recipe.yaml"):  # fmt: skip
        assert part in told, part
    assert drawn["Loss"] == "loss over step: loss ends at 1."
    assert drawn["Loss by term"] == "weighted loss over step: model ends at 0.9; align-uniform ends at 0.1."
    assert drawn["accuracy during training"].endswith("accuracy ends at 0.75.")
    assert "Learning rate" in drawn and not any("runtime" in title for title in drawn)
    assert "How far the scores can be trusted" not in told and "Example 1" not in told


def test_runs_side_by_side_are_told_apart(tmp_path):
    one = finished(tmp_path / "one")
    other = finished(tmp_path / "other", "dora", metrics={"loss": 0.3, "f1": 0.5}, notes=[])
    page = write_report([one, other], tmp_path / "both.html")
    told, drawn = words(page), descriptions(page)
    assert "Of other: " in told and "one: 3 rows were <cut>" in told
    assert drawn["Loss"] == "loss over step: one ends at 1; other ends at 1."
    assert "one model ends at 0.9" in drawn["Loss by term"] and "other align-uniform" in drawn["Loss by term"]
    row = re.search(r'<th scope="row"[^>]*>other</th>(.*?)</tr>', page.read_text())[1]
    assert re.findall(r">([^<>]+)</td>", row)[:3] == ["0.3", "–", "0.5"]  # loss, no accuracy, f1
    assert "recipe.yaml of one" in told and "recipe.yaml of other" in told
    assert not (tmp_path / "one" / "report.html").exists()


def test_folders_of_one_name_are_told_by_their_paths(tmp_path):
    page = write_report(
        [finished(tmp_path / "a" / "run"), finished(tmp_path / "b" / "run")], tmp_path / "p.html"
    )
    assert f"{tmp_path}/a/run" in words(page) and f"{tmp_path}/b/run" in words(page)


def test_stages_are_one_page_in_their_order(tmp_path):
    for name in ("2-second", "1-first"):
        finished(tmp_path / name)
    (tmp_path / "stages.json").write_text(json.dumps({"stages": [{"name": "1-first"}, {"name": "2-second"}]}))
    (tmp_path / "recipe.yaml").write_text("title: Both\n")
    assert [run.label for run in finished_runs(tmp_path, "x")] == ["x: 1-first", "x: 2-second"]
    page = write_report([tmp_path])
    assert page == tmp_path / "report.html" and "Both" in words(page)
    assert descriptions(page)["Loss"].index("1-first") < descriptions(page)["Loss"].index("2-second")


def test_scores_become_a_roc_and_a_calibration_curve(tmp_path):
    folder = finished(tmp_path / "one")
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(400, 2)), rng.integers(0, 2, 400)
    logits[np.arange(400), truth] += 1
    scores = softmax_scores(logits, truth)
    write_scores(folder, scores)
    told, drawn = words(write_report([folder])), descriptions(folder / "report.html")
    assert f"{scores.roc()['auroc']:.4f}" in told and f"{scores.calibration()['ece']:.2%}" in told
    assert "chance ends at" in drawn["ROC"] and "as they say" in drawn["Calibration"]
    write_scores(folder, None)
    assert "ROC" not in descriptions(write_report([folder]))


def test_examples_come_back_as_they_were_written(tmp_path):
    picture = Image.new("RGB", (900, 30), (10, 200, 30))
    examples = [
        Example(Shown("cat", "a cat & dog", (Span(2, 5, "animal"),)), "cat", True),
        Example(Shown("a lake", picture=picture, made={"mask": picture}), "sea", False),
        Example(Shown("", "? : r(a, ?)", ranked=(Ranked("b", 0.25, "because"),), bounded=False)),
    ]
    folder = finished(tmp_path / "one")
    write_examples(folder, examples)
    back = read_examples(folder)
    assert back[0] == examples[0] and back[2] == examples[2]
    assert back[1].shown.picture.size == (512, 17) and back[1].shown.made["mask"].getpixel((3, 3)) == (
        10,
        200,
        30,
    )
    html = write_report([folder]).read_text()
    assert html.count("<article") == 3 and html.count("data:image/png;base64,") == 2
    assert '<mark class="c0">cat <b>animal</b></mark>' in html and ">right<" in html and ">wrong<" in html
    write_examples(folder, [])
    assert read_examples(folder) == [] and not (folder / "examples").exists()


class Rows:
    """A split of tagged words, and the task's answers to it."""

    def __init__(self, rows):
        import datasets

        self.rows = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows)

    def __len__(self):
        return len(self.rows)

    def select(self, places):
        return Rows(self.rows.select(places))


def test_examples_are_spread_evenly_and_judged(monkeypatch):
    task = get_task("token-classification", ["O", "B-X"])
    split = Rows([{"tokens": ["a", f"n{i}"], "tags": ["O", "B-X"]} for i in range(9)])

    def predict(model, processor, inputs, batch_size=32):
        tags = {"n0": ["O", "B-X"]}
        return [{"tokens": one, "tags": tags.get(one[1], ["O", "O"]), "entities": []} for one in inputs]

    monkeypatch.setattr(task, "predict", predict)
    made = examples_of(3, task, None, None, split, split.rows)
    assert [one.shown.text for one in made] == ["a n0", "a n4", "a n8"]
    assert [one.right for one in made] == [True, False, False] and made[0].truth == "n0 B-X"
    assert len(examples_of(50, task, None, None, split, split.rows)) == 9


def test_the_command_writes_the_page_of_runs_and_refuses_what_is_none(tmp_path):
    one, other = finished(tmp_path / "one"), finished(tmp_path / "other")
    runner, app = CliRunner(), build()
    done = runner.invoke(app, ["report", str(one)])
    assert done.exit_code == 0 and "written to" in done.stdout and (one / "report.html").is_file()
    done = runner.invoke(
        app, ["report", str(one), str(other), "-o", str(tmp_path / "new" / "both.html"), "--json"]
    )
    assert json.loads(done.stdout) == {"report": str(tmp_path / "new" / "both.html")}
    assert "Runs side by side" in (tmp_path / "new" / "both.html").read_text()
    done = runner.invoke(app, ["report", str(tmp_path)])
    assert isinstance(done.exception, TrainingError) and "metrics.json, recipe.yaml missing" in str(
        done.exception
    )
