"""Every method's default targets and sizes, on models with mixtures of experts and on widths that they do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import AdaptomeError, HostError
from tests.core.models import move, run
from tests.core.test_experts import IDS, LATENT, MOE, SHARED

transformers = pytest.importorskip("transformers")

D, H, E = 32, 24, 3
FUSED = {"intermediate_size": H, "num_local_experts": E, "num_experts_per_tok": 2}
#: model family -> settings of its config; DeepSeek's first layer and every other one of Jamba's is dense
MODELS = {
    "GraniteMoe": FUSED,
    "Qwen3Moe": {**MOE, "num_experts": E, "head_dim": 16},
    "GptOss": {**FUSED, "head_dim": 16},
    "DeepseekV3": {**MOE, **LATENT, "n_routed_experts": E, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "Jamba": {
        "intermediate_size": 12, "num_experts": E, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 2, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "Mixtral": FUSED,
}  # fmt: skip
#: method -> what it needs besides, or why it is refused
BY_DESIGN = {
    "adapter-fusion": "name those to fuse",
    "clip-adapter": "visual_projection",
    "linear-probe": "nothing is named",
    "vpt": "causal or unknown",
    **dict.fromkeys(("aim", "pyra"), "no block that it knows"),
    "bitfit": "a role that nothing in .* has",  # GPT-OSS and Jamba have biases
    **dict.fromkeys(("prefix-tuning", "llama-adapter", "mam", "unipelt"), "compresses keys and values"),
    "divcontrol": "too few for 16 tailors",  # one gate for all layers, so the smallest must hold them
    "coop": "matches no module",
    "score-adapter": "predictor",
    "sketchtune": "tables of sketched layers",
    "vb-lora": "size = 64 does not divide",  # the bank of vectors of this length is all layers' own
}


def mixture(name: str) -> nn.Module:
    settings = {**SHARED, "hidden_size": D, "num_hidden_layers": 2, **MODELS[name]}
    if "head_dim" not in MODELS[name]:
        settings.pop("head_dim")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("family", MODELS)
def test_every_method_trains_by_default(family):
    refused = {}
    for name, method in ad.list_methods().items():
        model = mixture(family)
        try:
            plan = ad.attach(model, name, seed=0)
        except AdaptomeError as error:
            refused[name] = str(error)
            continue
        assert plan.trainable == ad.trainable(model).count, name
        for facts in method().example_facts():
            with ad.steer(**facts):
                model.train()(input_ids=IDS, labels=IDS).loss.backward()
        dead = [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert dead == [], name
    assert refused.keys() - BY_DESIGN.keys() == set(), refused
    for name, reason in refused.items():
        assert re.search(BY_DESIGN[name], reason), reason


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "adaptformer", "series", "compacter"])
def test_bottlenecks_stand_around_the_whole_mixture(method):
    model = mixture("DeepseekV3")
    plan = ad.attach(model, method, seed=0)
    inside = [entry.path for entry in plan.entries if ".mlp" in entry.path]
    assert "model.layers.1.mlp" in inside
    assert not any(path.startswith("model.layers.1.mlp.") for path in inside)
    assert all(path.startswith("model.layers.0.mlp.") for path in inside if path != "model.layers.1.mlp")
    assert plan.notes == ("around 1 whole mixtures of experts, as model.layers.1.mlp",)
    assert plan.notes[0] in str(plan) and plan.to_dict()["notes"] == list(plan.notes)


def test_a_bottleneck_behind_the_mixture_reads_what_the_mixture_gives():
    model = mixture("Mixtral")
    ad.attach(model, "pfeiffer", size=4, seed=0)
    move(model)
    block = model.model.layers[0].mlp
    adapter, x = block.adaptome["default"], torch.randn(2, 5, D)
    with torch.no_grad():
        with ad.disabled(model):
            z = block(x)
            z = z[0] if isinstance(z, tuple) else z
        y = block(x)
        y = y[0] if isinstance(y, tuple) else y
        expected = z + torch.relu(z @ adapter.D.T + adapter.d) @ adapter.U.T + adapter.u
    torch.testing.assert_close(y, expected)


class ListedExperts(nn.Module):
    """A mixture whose experts are a list of MLPs and whose router comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(8, 12), "w2": nn.Linear(12, 8)}) for _ in range(3)
        )
        self.gate = nn.Linear(8, 3)

    def forward(self, x):
        made = [e["w2"](torch.relu(e["w1"](x))) for e in self.experts]
        return (torch.stack(made, -1) * self.gate(x).softmax(-1).unsqueeze(-2)).sum(-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = ListedExperts()

    def forward(self, x):
        return x + self.mlp(x)


def listed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def test_listed_experts_are_surrounded_too_and_ia3_scales_their_inner_activations():
    plan = ad.plan(listed(), "pfeiffer", size=4)
    assert [(e.path, e.shape) for e in plan.entries] == [("0.mlp", (8, 8)), ("1.mlp", (8, 8))]
    plan = ad.plan(listed(), "ia3", targets="down")
    assert {e.path.rpartition(".")[2] for e in plan.entries} == {"w2"}
    assert [e.parameters for e in plan.entries] == [12] * 6


def test_named_targets_are_taken_as_they_are():
    plan = ad.plan(listed(), "pfeiffer", targets="down")
    assert len(plan.entries) == 6 and plan.notes == ()
    with pytest.raises(HostError, match="works on linear, module"):
        ad.attach(mixture("Mixtral"), "pfeiffer", targets="down")


def test_experts_that_a_method_does_not_take_are_left_out_and_told():
    plan = ad.plan(mixture("Mixtral"), "vera", r=4)
    assert {entry.kind for entry in plan.entries} == {"linear"}
    assert plan.notes[0].startswith(
        "left out 4 parameters of experts, as model.layers.0.mlp.experts.gate_up_proj: "
    )


@pytest.mark.parametrize("family", ["GptOss", "Mixtral"])  # the first stores [experts, in, out]
def test_ia3_scales_every_experts_inner_activations(family, tmp_path):
    model, small = mixture(family), IDS
    ad.attach(model, "ia3", seed=0)
    name = "model.layers.0.mlp.experts.down_proj"
    adapter = ad.adapters(model)["default"].adapters[name]
    assert adapter.l.shape == (E, H) and bool((adapter.l == 1).all())
    move(model)
    experts = model.model.layers[0].mlp.experts
    stored = experts._parameters["down_proj"]
    with torch.no_grad():
        factor = adapter.l[..., None] if family == "GptOss" else adapter.l[:, None, :]
        torch.testing.assert_close(experts.down_proj, stored * factor)
    expected = run(model, small)
    ad.save(model, tmp_path / "a")
    again = mixture(family)
    ad.load(again, tmp_path / "a")
    assert torch.equal(run(again, small), expected)
    ad.merge(model)
    torch.testing.assert_close(run(model, small), expected, rtol=1e-4, atol=1e-4)


def test_factors_on_an_experts_outputs_scale_its_bias_too():
    model = mixture("GptOss")
    ad.attach(model, "ia3", side="output", targets="experts", seed=0)
    move(model)
    experts = model.model.layers[0].mlp.experts
    l = ad.adapters(model)["default"].adapters["model.layers.0.mlp.experts.down_proj"].l
    with torch.no_grad():
        torch.testing.assert_close(experts.down_proj_bias, experts._parameters["down_proj_bias"] * l)
    expected = run(model, IDS)
    ad.merge(model)
    torch.testing.assert_close(run(model, IDS), expected, rtol=1e-4, atol=1e-4)


def test_hydra_on_an_expert_is_hydra_on_a_layer_with_its_weight_and_bias():
    model = mixture("GptOss")
    ad.attach(model, "hydra", seed=0)
    move(model)
    experts = model.model.layers[0].mlp.experts
    adapter = ad.adapters(model)["default"].adapters["model.layers.0.mlp.experts.down_proj"]
    layer = nn.Linear(H, D)
    ad.attach(layer, "hydra", targets="=", seed=0)
    with torch.no_grad():
        layer.weight.copy_(experts._parameters["down_proj"][1].T)
        layer.bias.copy_(experts._parameters["down_proj_bias"][1])
        for key in ("Ap", "Bp", "As", "Bs"):
            getattr(layer.adaptome["default"], key).copy_(getattr(adapter, key)[1])
        x = torch.randn(4, H)
        expected = x @ experts.down_proj[1] + experts.down_proj_bias[1]
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


# -- sizes


@pytest.mark.parametrize(
    ("method", "width", "own"),
    [
        ("oft", 12, {"size": 12}), ("oft", 90, {"size": 30}), ("oft", 64, {}), ("oft", 7, {"size": 7}),
        ("boft", 12, {"size": 2}), ("boft", 15, {"size": 3, "factors": 1}), ("boft", 16, {}),
        ("fourierft", 12, {"n": 240}), ("loca", 12, {"n": 240}), ("loldu", 12, {"r": 12}), ("diffusekrona", 10, {"nearest": True}),
        ("miss", 12, {"r": 12}), ("psoft", 12, {"r": 12}), ("road", 12, {"size": 20}), ("waveft", 12, {"n": 240}), ("t-lora", 12, {"r": 12}),
    ],
)  # fmt: skip
def test_a_default_that_does_not_fit_a_layer_takes_the_nearest_that_does(method, width, own, tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, 20))

    model, x = base(), torch.randn(3, width)
    plan = ad.attach(model, method, targets="0", seed=0)
    note = ", ".join(f"{key}={value}" for key, value in own.items())
    assert plan.entries[0].note == note and note in str(plan)
    assert plan.trainable == ad.trainable(model).count
    assert ad.adapters(model)["default"].per_layer == ({"=0": own} if own else {})
    move(model)
    ad.save(model, tmp_path / "a")
    again = base()
    ad.load(again, tmp_path / "a")
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "given", [{"size": 32}, {"per_layer": {"*": {"size": 32}}}, {"per_layer": {"=0": {"size": 32}}}]
)
def test_a_size_set_by_hand_is_refused_where_it_does_not_fit(given):
    with pytest.raises(HostError, match="the nearest divisor is 12"):
        ad.attach(nn.Sequential(nn.Linear(12, 20)), "oft", targets="0", **given)
    with pytest.raises(HostError, match="the nearest divisor is 12"):
        ad.attach(nn.Sequential(nn.Linear(12, 20)), ad.OFT(32), targets="0")


def test_the_others_of_a_layers_settings_stay_as_given():
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 12))
    plan = ad.attach(model, "boft", per_layer={"=0": {"factors": 1}}, targets=["0", "1"], seed=0)
    assert [entry.note for entry in plan.entries] == ["", "size=2"]
    assert ad.adapters(model)["default"].per_layer == {"=0": {"factors": 1}, "=1": {"size": 2}}


def test_a_budget_solves_a_size_where_the_default_does_not_fit():
    plan = ad.plan(nn.Sequential(nn.Linear(12, 20)), "oft", targets="0", budget=30)
    assert plan.budget is not None and plan.budget.value == 6 and plan.trainable == 30
