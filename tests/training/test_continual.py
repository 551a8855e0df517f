"""A stream carried out: its folder, what is kept where it is killed, and what is refused."""

import json
import os
import signal

import pytest
import torch
from transformers import TrainerCallback

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.recipe import load_recipe
from adaptome.training import run, run_continual
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
    """Kills the process at a step of the second round; at step 0 while the round is being closed."""

    def __init__(self, step):
        self.step, self.rounds = step, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.rounds += 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.rounds == 2 and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args, state, control, **kwargs):
        if self.rounds == 2 and self.step == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def doomed(folder, strategy, step):
    torch.set_num_threads(1)
    run_continual(recipe_of(folder, strategy), [Death(step)])


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


@pytest.mark.parametrize(
    "strategy, step", [({"name": "lae", "decay": 0.9}, 5), ({"name": "ewc", "samples": 3}, 0)]
)
def test_a_killed_stream_goes_on_to_the_same_bits(tmp_path, strategy, step):
    torch.set_num_threads(1)
    run_continual(recipe_of(tmp_path / "whole", strategy), [])
    process = server.Process(target=doomed, args=(tmp_path / "cut", strategy, step))
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
    assert whole[1] and whole == cut
    assert "<svg" in (tmp_path / "cut" / "report.html").read_text()


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
