"""The language of targets: what an entry matches, what is left out, and what the errors say."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from torch import nn

from adaptome.core.errors import TargetError
from adaptome.core.targets import ROLES, resolve, role_of, roles, roles_of


class Attention(nn.Module):
    def __init__(self, d: int = 8):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d) for _ in range(4))


class MLP(nn.Module):
    def __init__(self, d: int = 8):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(d, 12), nn.Linear(d, 12), nn.Linear(12, d)


class SparseMoE(nn.Module):
    """Experts as modules, as in models that are not fused."""

    def __init__(self, experts: int):
        super().__init__()
        self.gate = nn.Linear(8, experts)
        self.experts = nn.ModuleList(MLP() for _ in range(experts))


class Block(nn.Module):
    def __init__(self, experts: int = 0):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.self_attn = Attention()
        self.mlp = SparseMoE(experts) if experts else MLP()


class Decoder(nn.Module):
    def __init__(self, layers: int = 6, experts: int = 0):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Block(experts) for _ in range(layers))
        self.lm_head = nn.Linear(8, 20, bias=False)


class FusedExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 24, 8))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 24))
        self.down_proj = nn.Parameter(torch.zeros(3, 8, 12))
        self.down_proj_bias = nn.Parameter(torch.zeros(3, 1, 8))


def paths(model, targets, **settings):
    return [f"{m.path}.{m.parameter}" if m.parameter else m.path for m in resolve(model, targets, **settings)]


def layers_of(model, **settings):
    return [match.layer for match in resolve(model, "q", **settings)]


def message(model, targets, **settings):
    with pytest.raises(TargetError) as error:
        resolve(model, targets, **settings)
    return str(error.value)


# -- entries


@pytest.mark.parametrize(
    "entry",
    ["q", "q_proj", "self_attn.q_proj", "*.q_proj", "layers.*.q_proj", r"re:layers\.\d+\.self_attn\.q_proj", "*.self_attn.[q]_proj"],
)  # fmt: skip
def test_a_role_a_name_a_glob_and_a_regex_find_the_same_layers(entry):
    assert paths(Decoder(3), entry) == [f"layers.{i}.self_attn.q_proj" for i in range(3)]


def test_a_name_matches_whole_components_only():
    model = Decoder(2)
    assert paths(model, "layers.1.mlp") == ["layers.1.mlp"]
    assert "matches no module" in message(model, "proj")
    assert "matches no module" in message(model, "attn.q_proj")  # the component is self_attn


def test_a_regex_must_match_the_whole_path():
    assert "matches no module" in message(Decoder(2), "re:q_proj")


def test_a_role_wins_over_a_module_of_that_name():
    model = Decoder(2)
    assert paths(model, "mlp") == [
        f"layers.{i}.mlp.{n}_proj" for i in range(2) for n in ("gate", "up", "down")
    ]
    assert paths(model, "*.mlp") == ["layers.0.mlp", "layers.1.mlp"]


def test_entries_overlap_without_repeating_a_layer():
    model = Decoder(2)
    assert paths(model, ["q", "attention", "*.q_proj", "q"]) == paths(model, "attention")


def test_a_match_says_module_role_and_layer():
    model = Decoder(2)
    q, head = resolve(model, ["layers.1.self_attn.q_proj", "head"])
    assert (q.module, q.parameter, q.role, q.layer) == (model.layers[1].self_attn.q_proj, None, "q", 1)
    assert (head.path, head.role, head.layer) == ("lm_head", "head", None)


def test_an_equals_sign_means_that_path_alone():
    model = Decoder(2)
    model.mlp = nn.Linear(8, 8)
    assert paths(model, "=mlp") == ["mlp"]
    assert paths(moe(), "=layers.1.mlp.experts.down_proj") == ["layers.1.mlp.experts.down_proj"]
    assert "Write targets='q' or targets='q_proj'" in message(model, "=layers.0.self_attn.c_attn")
    assert "never calls it" in message(encoder(), "=layers.0.self_attn.out_proj")


def test_a_shared_module_is_found_by_each_of_its_paths_and_given_once():
    model = Decoder(3)
    model.layers[2] = model.layers[0]
    assert paths(model, "layers.2.self_attn.q_proj") == ["layers.0.self_attn.q_proj"]
    assert paths(model, "q") == ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]


def test_a_linear_layer_alone_is_all_linear():
    layer = nn.Linear(3, 5)
    (match,) = resolve(layer, "all-linear")
    assert match.path == "" and match.module is layer


# -- parameters that stand for layers


def moe() -> Decoder:
    model = Decoder(2)
    for block in model.layers:
        block.mlp = nn.Module()
        block.mlp.experts = FusedExperts()
        block.mlp.shared_expert = MLP()
    return model


def test_fused_experts_are_parameters_and_their_biases_are_not():
    first, second = resolve(moe(), "experts", layers=0)
    assert (first.path, first.parameter, first.role) == ("layers.0.mlp.experts", "gate_up_proj", "expert")
    assert (second.path, second.parameter) == ("layers.0.mlp.experts", "down_proj")


def test_a_name_finds_modules_and_fused_parameters_together():
    found = ["layers.0.mlp.experts.down_proj", "layers.0.mlp.shared_expert.down_proj"]
    assert paths(moe(), "down_proj", layers=0) == found
    assert paths(moe(), "down", layers=0) == found


def test_parameter_paths_match_by_name_glob_and_regex():
    model, path = moe(), "layers.1.mlp.experts.gate_up_proj"
    for entry in (path, "layers.1.*experts.gate_up_proj", r"re:.*\.1\..*gate_up_proj"):
        assert paths(model, entry) == [path]


def test_other_parameters_match_only_where_no_module_does():
    model = Decoder(2)
    (match,) = resolve(model, "layers.0.norm.weight")
    assert (match.path, match.parameter, match.role) == ("layers.0.norm", "weight", "norm")
    assert all(m.parameter is None for m in resolve(model, "*q_proj*"))


def test_experts_as_modules_have_roles_and_their_router_is_no_mlp():
    model = Decoder(2, experts=3)
    assert len(resolve(model, "experts")) == len(resolve(model, "mlp")) == 2 * 3 * 3
    assert paths(model, "gate", layers=0) == [f"layers.0.mlp.experts.{i}.gate_proj" for i in range(3)]
    assert paths(model, "router") == ["layers.0.mlp.gate", "layers.1.mlp.gate"]
    assert not set(paths(model, "router")) & set(paths(model, "all-linear"))
    assert paths(model, "mlp-blocks") == ["layers.0.mlp", "layers.1.mlp"]
    for block in model.layers:  # as in Switch Transformers
        block.mlp.experts = nn.ModuleDict({f"expert_{i}": e for i, e in enumerate(block.mlp.experts)})
    assert len(resolve(model, "experts")) == len(resolve(model, "mlp")) == 2 * 3 * 3


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False)


def test_multihead_attention_gives_the_weights_that_torch_uses():
    found = resolve(encoder(), "attention", layers=0)
    assert [(m.path, m.parameter, m.role) for m in found] == [
        ("layers.0.self_attn", "in_proj_weight", "qkv"),
        ("layers.0.self_attn.out_proj", "weight", "o"),
    ]
    assert paths(encoder(), "*.self_attn.in_proj_weight", layers=1) == ["layers.1.self_attn.in_proj_weight"]


def test_multihead_attention_with_other_widths_has_a_weight_each():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, kdim=6, vdim=4)})
    for role in "qkv":
        assert paths(model, role) == [f"attn.{role}_proj_weight"]


@pytest.mark.parametrize("entry", ["out_proj", "layers.0.self_attn.out_proj", "*.out_proj", "re:.*out_proj"])
def test_naming_the_output_layer_that_torch_never_calls_is_refused(entry):
    text = message(encoder(), entry)
    assert "never calls it" in text and "targets='layers.0.self_attn.out_proj.weight'" in text


def test_a_pattern_that_covers_its_weight_takes_the_weight():
    assert paths(encoder(), "*.0.self_attn.out_proj*") == ["layers.0.self_attn.out_proj.weight"]
    assert paths(encoder(), "out_proj.weight", layers=0) == ["layers.0.self_attn.out_proj.weight"]


# -- structure


def test_names_that_no_table_holds_are_read_from_their_places():
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha, self.beta = nn.Linear(8, 8), nn.Linear(8, 8)

    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = SelfAttention()
            self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 12), nn.Linear(12, 8))

    model = nn.Sequential(Strange(), Strange())
    assert paths(model, "attention", layers=0) == ["0.attention.alpha", "0.attention.beta"]
    assert [(m.path, m.role) for m in resolve(model, "mlp", layers=0)] == [
        ("0.mlp.0", "up"),
        ("0.mlp.2", "mlp"),
        ("0.mlp.3", "down"),
    ]
    assert paths(model, "blocks") == ["0", "1"]


def test_one_map_alone_is_a_layer_whatever_its_class_is_called():
    class MLPLayer(nn.Module):  # LeViT wraps each linear layer like this
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

    model = Decoder(2)
    model.layers[0].projection = MLPLayer()
    assert paths(model, "linear") == ["layers.0.projection.linear"]
    assert paths(model, "mlp-blocks") == ["layers.0.mlp", "layers.1.mlp"]


def test_w1_is_the_gate_where_there_is_a_w3_and_the_first_map_where_not():
    model = Decoder(2)
    for block, names in zip(model.layers, (("w1", "w2"), ("w1", "w2", "w3")), strict=True):
        block.mlp = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
    assert [m.role for m in resolve(model, "mlp")] == ["up", "down", "gate", "down", "up"]


def test_quantised_linear_layers_are_linear():
    class QuantLinear(nn.Module):  # no nn.Linear, as in GPTQ
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 8, 8

    model = Decoder(1)
    model.layers[0].self_attn.q_proj = QuantLinear()
    assert [m.role for m in resolve(model, "attention")] == ["q", "k", "v", "o"]


def test_a_map_tied_to_the_embedding_is_a_head_whatever_its_name():
    model = Decoder(2)
    model.unembed, model.lm_head = model.lm_head, None
    assert "unembed" in paths(model, "all-linear")
    model.unembed.weight = model.embed.weight
    assert paths(model, "head") == ["unembed"]
    assert "unembed" not in paths(model, "all-linear")


def test_a_list_of_heads_gives_its_members():
    model = Decoder(1)
    model.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 3)])
    assert paths(model, "head") == ["lm_head", "heads.0", "heads.1"]


def test_convolutional_blocks_are_blocks_where_there_is_no_attention():
    stage = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(4))
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 3, 3), "stage": stage})
    assert paths(model, "blocks") == [f"stage.{i}" for i in range(4)]
    assert paths(model, "convs", layers="-2:") == ["stage.2.0", "stage.3.0"]
    assert len(resolve(model, "norms")) == 4


def test_norms_without_parameters_are_no_norms():
    model = nn.ModuleDict(
        {"a": nn.LayerNorm(8), "b": nn.LayerNorm(8, elementwise_affine=False), "c": nn.RMSNorm(8)}
    )
    assert paths(model, "norms") == ["a", "c"]


def adapted(layer: nn.Module) -> None:
    """A layer as it is with an adapter on it: a subclass of its class, and a ModuleDict below."""
    layer.__class__ = type(f"Adapted{type(layer).__name__}", (type(layer),), {})
    adapter = nn.Module()
    adapter.q_proj, adapter.norm = nn.Linear(8, 2), nn.LayerNorm(8)
    layer.adaptome = nn.ModuleDict({"default": adapter})


def test_adapters_are_never_targets_and_do_not_hide_their_layer():
    plain, model = Decoder(2), Decoder(2)
    for block in model.layers:
        for module in (block.self_attn.q_proj, block.norm, block.mlp, block):
            adapted(module)
    adapted(model.embed)
    model.adaptome_shared = nn.ModuleDict({"default": nn.Linear(8, 8)})
    assert {role: len(found) for role, found in roles(model).items()} == {
        role: len(found) for role, found in roles(plain).items()
    }
    assert paths(model, "*") == paths(plain, "*")
    assert "matches no module" in message(model, "*.adaptome.*")


# -- exclude and layers


def test_exclude_speaks_the_same_language():
    model = Decoder(2)
    assert paths(model, "attention", exclude=["o", "layers.0.*", "re:.*k_proj"]) == [
        f"layers.1.self_attn.{n}_proj" for n in "qv"
    ]


def test_what_is_inside_an_excluded_module_is_excluded():
    model = Decoder(3)
    assert paths(model, "all-linear", exclude="layers.1") == [
        p for p in paths(model, "all-linear") if not p.startswith("layers.1.")
    ]
    assert paths(model, "all-linear", exclude="attention-blocks") == paths(model, "mlp")
    assert paths(moe(), "mlp", exclude="layers.*.experts", layers=0) == paths(
        moe(), "*.0.mlp.shared_expert.*"
    )
    assert paths(encoder(), "o", exclude="layers.0.self_attn.out_proj") == [
        "layers.1.self_attn.out_proj.weight"
    ]


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (0, [0]), (-1, [5]), ("2", [2]), ("-2", [4]), ([0, -1], [0, 5]), ((3,), [3]), (range(1, 3), [1, 2]), ("0-2", [0, 1, 2]),
        ("4:6", [4, 5]), ("-4:", [2, 3, 4, 5]), (":2", [0, 1]), (":", [0, 1, 2, 3, 4, 5]), ("1:-3", [1, 2]), ("5-5", [5]),
    ],
)  # fmt: skip
def test_layers_are_counted_like_python_and_dashes_hold_both_ends(layers, found):
    assert layers_of(Decoder(6), layers=layers) == found


@pytest.mark.parametrize(
    "layers", ["first", "", "1-", "a:b", "0:4:2", 1.5, True, [], [True], ["0"], object()]
)
def test_nonsense_layers_are_refused_with_the_grammar(layers):
    text = message(Decoder(6), "q", layers=layers)
    assert repr(layers) in text and "'4:8'" in text and "'0-5'" in text


@pytest.mark.parametrize("layers", [6, -7, [0, 6], "0-6", "4:8", "-7:", "3:2", "4-2", "6:"])
def test_layers_out_of_range_are_refused_with_the_range(layers):
    text = message(Decoder(6), "q", layers=layers)
    assert "6 in layers" in text and "0 to 5" in text


def test_each_stack_counts_its_own_layers():
    model = nn.ModuleDict({"encoder": Decoder(2), "decoder": Decoder(5)})
    assert paths(model, "q", layers=-1) == [
        "encoder.layers.1.self_attn.q_proj",
        "decoder.layers.4.self_attn.q_proj",
    ]
    assert paths(model, "q", layers="3:") == [
        "decoder.layers.3.self_attn.q_proj",
        "decoder.layers.4.self_attn.q_proj",
    ]
    assert len(resolve(model, "q", layers="-3:")) == 2 + 3
    assert "2 in encoder.layers, 5 in decoder.layers" in message(model, "q", layers=5)


def test_layers_leave_out_what_is_in_no_layer_and_say_so():
    model = Decoder(4)
    assert "targets='head' matches 1 places" in message(model, ["q", "head"], layers=0)
    assert "nothing that was targeted" in message(model, "head", layers=0)


# -- errors


def test_an_entry_without_a_match_names_what_there_is_and_what_to_write():
    text = message(Decoder(6), ["attention", "c_attn"])
    assert text.startswith("targets='c_attn' matches no module of Decoder.")
    assert "6 q_proj, 6 k_proj" in text and "its roles: attention, q, k" in text
    assert "Write targets='q' or targets='q_proj'" in text  # what c_attn is elsewhere


def test_a_misspelt_name_or_role_is_answered_with_the_nearest():
    assert "targets='gate_proj'" in message(Decoder(2), "gate_projj")
    assert "Write targets='attention'" in message(Decoder(2), "atention")


def test_a_role_that_the_model_lacks_is_an_error():
    text = message(Decoder(2), "convs")
    assert "targets='convs' is a role that nothing in Decoder has" in text
    assert "Write targets='mlp'" in message(Decoder(2), "experts")
    assert "its roles: none" in message(nn.ReLU(), "all-linear")


def test_an_exclusion_that_matches_nothing_is_an_error():
    assert message(Decoder(2), "q", exclude="layers.7").startswith("exclude='layers.7' matches no module")


def test_an_entry_of_which_nothing_is_left_is_an_error():
    assert "targets='q' matches 2 places in Decoder, and exclude='attention' leaves none" in message(
        Decoder(2), ["mlp", "q"], exclude="attention"
    )


@pytest.mark.parametrize("targets", [[], "", ["q", ""], [3], 3, None])
def test_what_is_no_entry_is_refused(targets):
    with pytest.raises(TargetError, match="targets"):
        resolve(Decoder(1), targets)


def test_a_broken_regex_is_named():
    assert "targets='re:(' is not a regular expression" in message(Decoder(1), "re:(")


# -- reports


def test_every_published_role_has_a_meaning():
    assert all(meaning and "\n" not in meaning for meaning in ROLES.values())
    assert set(roles(Decoder(2, experts=2))) < set(ROLES)


def test_the_role_of_a_path_is_its_layers_role():
    model = moe()
    expected = {
        "layers.0.self_attn.q_proj": "q", "layers.0.self_attn.q_proj.weight": "q",
        "layers.0.self_attn.q_proj.adaptome.default.A": "q", "layers.0.norm.bias": "norm", "embed.weight": "embedding",
        "layers.0.mlp.experts.gate_up_proj": "expert", "lm_head.weight": "head", "layers.0": "block",
        "layers.0.mlp.experts.adaptome.default.A": "expert", "adaptome_shared.default.pool": "shared", "": "backbone",
    }  # fmt: skip
    assert {path: roles_of(model)(path) for path in expected} == expected
    assert role_of(model, "layers.1.mlp.shared_expert.down_proj") == "down"


def test_a_deep_model_of_many_experts_resolves_in_well_under_a_second():
    with torch.device("meta"):
        model = Decoder(48, experts=128)
    times = []
    for _ in range(3):
        start = time.process_time()
        matches = resolve(model, ["attention", "mlp"])
        times.append(time.process_time() - start)
    assert len(matches) == 48 * (4 + 3 * 128)
    assert min(times) < 0.9  # 0.27 s on one core of the year's machines


def test_resolving_keeps_nothing_of_the_model_alive():
    model = Decoder(2)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        resolve(model, "attention", layers=0), roles(model)
        del model
        assert gone() is None
    finally:
        gc.enable()
