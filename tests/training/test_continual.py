"""A stream carried out: its folder, what is kept where it is killed, and what is refused."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainerCallback

import adaptome as ad
from adaptome.continual.loop import ROW
from adaptome.continual.losses import SelectedCrossEntropy
from adaptome.core.errors import DataError, MergeError, RecipeError, TrainingError
from adaptome.data import load_splits
from adaptome.data.makers import make
from adaptome.recipe import load_recipe
from adaptome.training import evaluate, load_run, predict, run, run_continual
from tests.training.killable import KILLED, server

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def recipe_of(folder, strategy, **training):
    return load_recipe(
        {
            "model": {"from_config": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SHAPE}},
            "task": "image-classification",
            "data": {"name": "made:glyphs", "limit": 80},
            "method": {"name": "lora", "r": 2, "targets": ["k", "v"]},
            "continual": {"stream": {"by": "labels", "size": 10}, "strategy": strategy},
            "training": {
                "max_steps": 6,
                "batch_size": 8,
                "learning_rate": 0.01,
                "save_steps": 2,
                "device": "cpu",
                **training,
            },
            "output": str(folder),
        }
    )


class Death(TrainerCallback):
    """Kills the process at a step of a run of the Trainer; at step 0 when it ends."""

    def __init__(self, run, step):
        self.run, self.step, self.runs = run, step, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.runs += 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.runs == self.run and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args, state, control, **kwargs):
        if self.runs == self.run and self.step == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def doomed(folder, strategy, run, step):
    torch.set_num_threads(1)
    run_continual(recipe_of(folder, strategy), [Death(run, step)])


def outcome(folder):
    told = json.loads((folder / "metrics.json").read_text())
    states = {
        path.parent.parent.name: path.read_bytes() for path in folder.glob("*/after/strategy.safetensors")
    }
    return (
        (folder / "adapter" / "adapter.safetensors").read_bytes(),
        states,
        told["continual"],
        told["metrics"],
    )


DYNAMIC = {"name": "conpet-dynamic", "batches": 3}


@pytest.mark.parametrize(
    "strategy, run, step",
    [
        pytest.param({"name": "lae", "decay": 0.9}, 2, 5, marks=pytest.mark.slow),
        pytest.param({"name": "ewc", "samples": 3}, 2, 0, marks=pytest.mark.slow),
        (DYNAMIC, 3, 5),  # while the second task's module is being trained
        pytest.param(DYNAMIC, 2, 5, marks=pytest.mark.slow),  # its selector
        pytest.param(DYNAMIC, 3, 0, marks=pytest.mark.slow),
        pytest.param({**DYNAMIC, "active": 2}, 2, 5, marks=pytest.mark.slow),
        pytest.param({"name": "conpet-static", "batches": 3}, 2, 5, marks=pytest.mark.slow),
    ],
)
def test_a_killed_stream_goes_on_to_the_same_bits(tmp_path, strategy, run, step):
    torch.set_num_threads(1)
    run_continual(recipe_of(tmp_path / "whole", strategy), [])
    process = server.Process(target=doomed, args=(tmp_path / "cut", strategy, run, step))
    process.start()
    process.join()
    assert process.exitcode == KILLED
    assert (
        not (tmp_path / "cut" / "metrics.json").exists()
        and (tmp_path / "cut" / "1-task-1" / "after").is_dir()
    )
    with pytest.raises(TrainingError, match="holds a run already"):
        run_continual(recipe_of(tmp_path / "cut", strategy), [])
    with pytest.raises(TrainingError, match="another continual"):
        run_continual(recipe_of(tmp_path / "cut", "sequential", resume=True), [])
    run_continual(recipe_of(tmp_path / "cut", strategy, resume=True), [])
    whole, cut = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert whole == cut
    assert bool(whole[1]) == (strategy["name"] != "conpet-static")  # which keeps rows, and no tensors
    page = (tmp_path / "cut" / "report.html").read_text()
    assert "class-incremental" in page and "accuracy after each task" in page and "<svg" in page
    assert not list((tmp_path / "cut").glob("*/selector")) and not list((tmp_path / "cut").glob("*/checkpoints"))  # fmt: skip


# -- a finished run is used as its strategy predicts --------------------------------------------------------------------


def test_lae_predicts_by_the_surer_of_both_adapters(tmp_path):
    made = run_continual(recipe_of(tmp_path, {"name": "lae", "decay": 0.5, "freeze": 0.0}), [])
    images = make("made:glyphs", 0)["test"].columns["image"][:12]
    loaded = {how: load_run(tmp_path, [f"continual.strategy.experts={how}"]) for how in ("both", "online", "offline")}  # fmt: skip
    scores = {
        how: torch.tensor(
            [list(one["scores"].values()) for one in run.task.predict(run.model, run.processor, images)]
        )
        for how, run in loaded.items()
    }
    assert not torch.allclose(scores["online"], scores["offline"])
    both = torch.maximum(
        scores["online"], scores["offline"]
    )  # element by element; predict shows their shares
    torch.testing.assert_close(scores["both"], both / both.sum(1, keepdim=True))
    assert evaluate(tmp_path)["accuracy"] == pytest.approx(made.metrics["class_whole"])
    assert evaluate(tmp_path / "1-task-1")["accuracy"] == pytest.approx(made.continual["whole"][0])
    assert predict(tmp_path, images)[0]["label"] == loaded["both"].task.predict(
        loaded["both"].model, loaded["both"].processor, images
    )[0]["label"]  # fmt: skip


@pytest.mark.slow
def test_conpet_predicts_by_the_modules_that_its_selector_chooses(tmp_path, monkeypatch):
    seen, value = [], SelectedCrossEntropy.value

    def watched(self, outputs, batch, looked):
        seen.append(sum(int(label) >= 10 for label in batch["labels"]))
        assert len(batch[ROW]) == 8
        return value(self, outputs, batch, looked)

    monkeypatch.setattr(SelectedCrossEntropy, "value", watched)
    made = run_continual(recipe_of(tmp_path, DYNAMIC), [])
    assert seen == [4] * 6  # half new and half old in every batch, as they were drawn
    assert evaluate(tmp_path)["accuracy"] == pytest.approx(made.metrics["class_whole"])
    assert evaluate(tmp_path / "1-task-1")["accuracy"] == pytest.approx(made.continual["whole"][0])
    assert made.continual["steps"] == [6, 12]  # a selector and a module
    with pytest.raises(MergeError, match="answers with several sets of adapters"):
        load_run(tmp_path, single=True)
    load_run(tmp_path / "1-task-1", single=True)
    images = make("made:glyphs", 0)["test"].columns["image"][:12]
    for one in predict(tmp_path, images):
        assert sum(share > 1e-30 for share in one["scores"].values()) == 10  # one module's labels
    told = json.loads((tmp_path / "metrics.json").read_text())["history"]
    steps = [entry["step"] for entry in told]
    assert steps == sorted(steps) and steps[-1] == 18


@pytest.mark.slow
def test_a_run_with_adapters_of_single_tasks_must_be_told_the_task(tmp_path):
    made = run_continual(recipe_of(tmp_path, "adapter-per-task"), [])
    with pytest.raises(RecipeError, match="must be told which task"):
        load_run(tmp_path)
    for number in (1, 2):
        found = evaluate(tmp_path / f"{number}-task-{number}")["accuracy"]
        assert found == pytest.approx(made.continual["matrices"]["task"][1][number - 1])


def test_tasks_of_unequal_size_weigh_alike_in_the_average_and_by_their_rows_in_the_whole(tmp_path):
    """The first task brings 15 of 20 signs; the second, learned last, is known better."""
    recipe = recipe_of(tmp_path, "sequential")
    recipe.continual.stream.size = 15
    made = run_continual(recipe, [])
    labels = np.array(load_splits("made:glyphs", limit=80)["test"].rows["label"])
    sizes = [(labels < 15).sum(), (labels >= 15).sum()]
    found = made.continual["matrices"]["class"][-1]
    assert sizes[0] > 2 * sizes[1] and found[0] != found[1]
    assert made.metrics["class_average"] == pytest.approx(np.mean(found))
    assert made.metrics["class_whole"] == pytest.approx(np.average(found, weights=sizes))
    assert made.metrics["class_average"] != pytest.approx(made.metrics["class_whole"], abs=0.01)


# -- streams of recipes -------------------------------------------------------------------------------------------------


def streamed(tmp_path, labels, kind="image-classification", names=("one", "two")):
    files = []
    for seed, name in enumerate(names):
        own = recipe_of(tmp_path / name, "sequential").model_dump(mode="json", exclude_defaults=True)
        own |= {"data": {"name": "made:glyphs", "split_seed": seed, "limit": 200}, "task": kind}
        del own["continual"]
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(own))
    content = recipe_of(tmp_path / f"run-{labels}", "sequential", max_steps=2).model_dump(mode="json", exclude_defaults=True)  # fmt: skip
    stream = {"by": "recipes", "recipes": [str(file) for file in files], "labels": labels}
    del content["data"]
    return load_recipe({**content, "continual": {"stream": stream, "strategy": "sequential"}})


@pytest.mark.slow
def test_recipes_as_tasks_that_share_their_labels_or_have_their_own(tmp_path):
    made = run_continual(streamed(tmp_path, "shared"), [])
    assert set(made.continual["matrices"]) == {"domain"} and made.continual["tasks"] == ["one", "two"]
    assert evaluate(tmp_path / "run-shared")["accuracy"] == pytest.approx(made.metrics["domain_average"])
    made = run_continual(streamed(tmp_path, "own"), [])
    assert set(made.continual["matrices"]) == {"class", "task"}
    assert [len(classes) for classes in made.continual["classes"]] == [20, 20]
    assert made.continual["classes"][1][0] == "two: sign 00"
    with pytest.raises(DataError, match="label 'sign 00' is in task 'one' and in task 'two'"):
        run_continual(streamed(tmp_path, "disjoint"), [])


def test_recipes_that_are_no_tasks_of_the_stream(tmp_path):
    with pytest.raises(RecipeError, match="is of the task text-classification, the stream's is image-classification"):  # fmt: skip
        run_continual(streamed(tmp_path, "shared", kind="text-classification"), [])
    with pytest.raises(DataError, match="the stream is empty"):
        run_continual(streamed(tmp_path, "shared", names=()), [])
    with pytest.raises(DataError, match="two tasks are called 'one'"):
        run_continual(streamed(tmp_path, "shared", names=("one", "one")), [])


def test_heads_of_other_tasks_and_resting_adapters_keep_their_bits(tmp_path):
    strategy = {"name": "lae", "freeze": 0.99, "decay": 0.5}
    made = run_continual(recipe_of(tmp_path, strategy), [])
    from safetensors.torch import load_file

    first, second = (
        load_file(next((tmp_path / f"{n}-task-{n}/after").rglob("adapter.safetensors"))) for n in (1, 2)
    )
    heads = [k for k in first if "classifier" in k]
    assert heads and len(heads) < len(first)
    for key in first:
        if key in heads:
            assert torch.equal(first[key][:10], second[key][:10]) and not torch.equal(
                first[key][10:], second[key][10:]
            )
        else:
            assert torch.equal(first[key], second[key])  # 6 of 6 steps are the head's
            assert key.endswith("A") or first[key].abs().max() > 0  # and in the first task they trained
    assert (
        set(made.continual["matrices"]) == {"class", "task"}
        and made.continual["matrices"]["class"][0][1] is None
    )


def test_what_cannot_be_a_stream(tmp_path):
    recipe = recipe_of(tmp_path, {"name": "lae"}, weight_decay=0.1)
    with pytest.raises(RecipeError, match="would decay"):
        run_continual(recipe, [])
    with pytest.raises(RecipeError, match="budget=5 is smaller than the stream's 20 labels"):
        run_continual(recipe_of(tmp_path, {"name": "replay", "budget": 5}), [])
    with pytest.raises(RecipeError, match="adaptome continual"):
        run(recipe)
    with pytest.raises(RecipeError, match="no `continual` section"):
        run_continual(recipe.model_copy(update={"continual": None}), [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method, settings, count",
    [
        (
            "parallel",
            {
                "targets": "attention-blocks",
                "size": 5,
                "bias": True,
                "activation": "gelu",
                "scale": "learned",
            },
            42_270,
        ),
        ("lora", {"targets": ["k", "v"], "r": 5, "alpha": 5, "train_scale": True}, 76_810),
        ("prefix-tuning", {"p": 10, "hidden": 0, "train_scale": True, "compensate": True}, 76_810),
    ],
)
def test_lae_trains_as_many_numbers_as_the_paper_at_full_size(method, settings, count):
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        model = ViTModel(ViTConfig(), add_pooling_layer=False)
    assert ad.plan(model, method, layers="0-4", **settings).trainable == count
