"""On the same numbers, PEFT's outputs and gradients, to 1e-5."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import adaptome as ad

OUT, IN = 20, 12


class One(nn.Module):
    """A layer by a name that PEFT can be told."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(x, **kwargs)


def put(
    ours: str, theirs: str, change: Callable[[Tensor], Tensor] = lambda t: t
) -> Callable[[Any, Any], None]:
    """Copy one of our tensors into one of PEFT's."""

    def copy_into(a: Any, b: Any) -> None:
        target = getattr(b, theirs)["default"]
        getattr(target, "weight", target).data.copy_(change(getattr(a, ours)))

    return copy_into


def gralora(a: Any, b: Any) -> None:
    for name in "AB":
        put(name, f"gralora_{name}", lambda t: t.transpose(1, 2))(a, b)
        put(f"{name}_all", f"gralora_{name}_general")(a, b)


def shira(a: Any, b: Any) -> None:
    put("values", "shira_weight")(a, b)
    b.shira_indices["default"] = torch.stack([a.index // IN, a.index % IN]).int()


def tinylora(a: Any, b: Any) -> None:
    b.tinylora_v["default"]["0"].data.copy_(a.shared.v[0])
    for name in "ABP":
        getattr(b, f"tinylora_{name}")["default"] = getattr(a, name)


def psoft(a: Any, b: Any) -> None:
    R = b.psoft_R["default"]
    for ours, theirs in ((a.Q, R.weight), (a.a, R.vector_a), (a.b, R.vector_b)):
        theirs.data.copy_(ours)


def peanut(a: Any, b: Any) -> None:
    put("A", "peanut_A")(a, b)
    put("B", "peanut_B")(a, b)
    for i in range(2):
        b.peanut_encoders["default"][i].weight.data.copy_(a.E[i])
        b.peanut_decoders["default"][i].weight.data.copy_(a.D[i])


def glora(a: Any, b: Any) -> None:
    for name, term in a.terms.items():
        path = getattr(b, f"glora_{name}")["default"]
        pairs = ((term.down, path.Xd), (term.up, path.Xu)) if hasattr(term, "up") else ((term.value, path.X),)
        for ours, theirs in pairs:
            theirs.data.copy_(ours.view(theirs.shape))


def vb_lora(a: Any, b: Any) -> None:
    b.vblora_vector_bank["default"].data.copy_(a.shared.vectors)
    put("A", "vblora_logits_A")(a, b)
    put("B", "vblora_logits_B")(a, b)


def uni_lora(a: Any, b: Any) -> None:
    b.unilora_theta_d["default"].data.copy_(a.shared.theta)
    for name, index in (("A", a.a), ("B", a.b)):
        getattr(b, f"unilora_indices_{name}")["default"] = index
        getattr(b, f"unilora_scales_{name}")["default"] = a.shared.scales[index]


def pvera(a: Any, b: Any) -> None:
    put("d", "pvera_lambda_d")(a, b)
    put("b", "pvera_lambda_b")(a, b)
    b.pvera_A["default"], b.pvera_B["default"] = a.shared.A, a.shared.B


def deft(a: Any, b: Any) -> None:
    put("P", "deft_P")(a, b)
    if a.R is not None:
        put("R", "deft_R")(a, b)


def osf(a: Any, b: Any) -> None:
    # PEFT keeps them in the complement by its gradients
    a.U.data -= a.K @ (a.K.T @ a.U.data)
    a.V.data -= (a.V.data @ a.H.T) @ a.H
    for ours, theirs in ((a.U, "U_low"), (a.s, "S_low"), (a.V, "V_low")):
        b.osf_svd_params["default"][theirs].data.copy_(ours)


def lily(a: Any, b: Any) -> None:
    [A], [B], [G] = a.shared.A.values(), a.shared.B.values(), a.shared.G
    b.lily_A["default"].weight.data.copy_(A)
    b.lily_router["default"].weight.data.copy_(G)
    b.lily_B["default"].weight.data.copy_(B.transpose(1, 2).flatten(0, 1))


def poly(a: Any, b: Any) -> None:
    put("A", "poly_lora_A", lambda t: t.transpose(2, 3))(a, b)
    put("B", "poly_lora_B", lambda t: t.transpose(2, 3))(a, b)
    b.poly_router["default"].module_logits.data.copy_(a.z.flatten(1))


CASES: dict[str, tuple[ad.Method, Any, Callable[[Any, Any], None]]] = {
    "hra": (ad.get_method("hra", r=4), peft.HRAConfig(r=4), put("U", "hra_u")),
    "hra-gram-schmidt": (ad.get_method("hra", r=3, gram_schmidt=True), peft.HRAConfig(r=3, apply_GS=True), put("U", "hra_u")),
    "c3a": (ad.get_method("c3a", size=4), peft.C3AConfig(block_size=4), put("w", "c3a_kernel")),
    **{
        f"waveft-{m}": (ad.get_method("waveft", n=40, moments=m), peft.WaveFTConfig(n_frequency=40, wavelet_family=f"db{m}"), put("c", "waveft_spectrum"))
        for m in (1, 2, 5, 8)
    },
    "miss": (ad.get_method("miss", r=5), peft.MissConfig(r=5), put("D", "miss_block", torch.t)),
    "miss-mini": (ad.get_method("miss", r=5, form="mini", rows=4), peft.MissConfig(r=5, mini_r=4, init_weights="mini"), put("D", "miss_block", torch.t)),
    "miss-bat": (ad.get_method("miss", r=4, form="bat"), peft.MissConfig(r=4, init_weights="bat"), put("D", "miss_block")),
    "gralora": (ad.get_method("gralora", r=8, k=2, hybrid_r=3, alpha=6.0), peft.GraloraConfig(r=8, gralora_k=2, hybrid_r=3, alpha=6), gralora),
    **{
        f"road-{v}": (
            ad.get_method("road", variant=v, size=4), peft.RoadConfig(variant=f"road_{v}", group_size=4),
            lambda a, b: (put("t", "road_theta")(a, b), put("a", "road_alpha")(a, b)),
        )
        for v in (1, 2, 4)
    },
    "shira": (ad.get_method("shira", r=2), peft.ShiraConfig(r=2), shira),
    "hira": (ad.get_method("hira", r=2), peft.HiraConfig(r=2), lambda a, b: (put("A", "hira_A")(a, b), put("B", "hira_B")(a, b))),
    "delora": (
        ad.get_method("delora", r=2), peft.DeloraConfig(r=2),
        lambda a, b: (put("A", "delora_A")(a, b), put("B", "delora_B")(a, b), put("lambda_", "delora_lambda")(a, b)),
    ),
    "tinylora": (ad.get_method("tinylora", r=3, n=5), peft.TinyLoraConfig(r=3, u=5), tinylora),
    "psoft": (ad.get_method("psoft", r=4), peft.PsoftConfig(r=4, psoft_alpha=9), psoft),
    "peanut": (ad.get_method("peanut", r=4, depth=2, scale=0.7), peft.PeanutConfig(r=4, depth=2, scaling=0.7), peanut),
    "glora": (ad.get_method("glora", r=2, C="lora"), peft.GloraConfig(r=2, config_A_B="lora", config_C="lora", config_D_E="vector"), glora),
    "glora-rows": (
        ad.get_method("glora", A="vector", B="vector", D="constant", E="constant"),
        peft.GloraConfig(config_A_B="vector", config_C="vector", config_D_E="constant"), glora,
    ),
    "vb-lora": (ad.get_method("vb-lora", r=2, size=4, bank=9), peft.VBLoRAConfig(r=2, vector_length=4, num_vectors=9), vb_lora),
    "uni-lora": (ad.get_method("uni-lora", r=2, n=30), peft.UniLoraConfig(r=2, theta_d_length=30), uni_lora),
    "pvera": (ad.get_method("pvera", r=3), peft.PveraConfig(r=3), pvera),
    "deft": (ad.get_method("deft", r=3, scale=2.0), peft.DeftConfig(r=3, alpha=6), deft),
    "deft-qr": (ad.get_method("deft", r=3, projection="qr"), peft.DeftConfig(r=3, decomposition_method="qr"), deft),
    "deft-removed": (ad.get_method("deft", r=3, fill=False), peft.DeftConfig(r=3, para=True), deft),
    "osf": (ad.get_method("osf", rank=5), peft.OSFConfig(effective_rank=5), osf),
    "beft": (ad.get_method("ssf", scale=False), peft.BeftConfig(), put("beta", "beft_bias", lambda t: t[None])),
    "lily": (ad.get_method("lily", r=3, experts=2, mean="batch"), peft.LilyConfig(r=3, num_B=2, stride_A=1), lily),
    "poly": (ad.get_method("poly", tasks=("a", "b"), r=3, skills=4, splits=2), peft.PolyConfig(r=3, n_tasks=2, n_skills=4, n_splits=2), poly),
    "supertuning": (
        ad.get_method("sparse-delta", n=25, selection="largest"), peft.SupertuningConfig(sparsity=0.895),
        lambda a, b: (put("values", "supertuning_values")(a, b), b.supertuning_indices.__setitem__("default", a.index)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_pefts(case):
    method, config, copy_into = CASES[case]
    torch.manual_seed(0)
    base, x = One(nn.Linear(IN, OUT)), torch.randn(3, 5, IN, requires_grad=True)
    model = copy.deepcopy(base)
    ad.attach(model, method, targets="layer")
    config.target_modules = ["layer"]
    other = peft.get_peft_model(copy.deepcopy(base), config).eval()
    adapter = ad.adapters(model)["default"].adapters["layer"]
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
        copy_into(adapter, other.base_model.model.layer)
    facts = {"task_ids": torch.tensor([1, 0, 1])} if case == "poly" else {}
    with ad.steer(task=["b", "a", "b"]):
        mine, peer = model.eval()(x), other(x, **facts)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mine, peer, **close)
    assert not torch.allclose(mine, base(x), atol=1e-2)
    if case == "c3a":
        return  # PEFT's gradient of the input is not its forward's there; ours is tested against the dense product
    push = torch.randn_like(mine)
    gradients = (torch.autograd.grad(y, x, push)[0] for y in (mine, peer))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def gpt2(tied: bool = True) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2)
    config.tie_word_embeddings = tied
    return GPT2LMHeadModel(config).eval()


IDS = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_are_pefts_and_a_tied_head_has_them_too(tied):
    model, ids = gpt2(tied), [7, 2, 29]
    heads = ["transformer.wte", "lm_head"] if tied else ["transformer.wte"]
    made = ad.attach(model, "trainable-tokens", ids=ids, targets=heads)
    config = peft.TrainableTokensConfig(token_indices=ids, target_modules=["wte"])
    other = peft.get_peft_model(copy.deepcopy(gpt2(tied)), config).eval()
    [D] = ad.parameters_of(model).values()
    assert made.trainable == D.numel() == 3 * 16
    [rows] = [p for n, p in other.named_parameters() if n.endswith("trainable_tokens_delta.default")][:1]
    with torch.no_grad():
        D.normal_()
        rows.add_(D)
    mine = model(IDS).logits
    torch.testing.assert_close(mine, other(IDS).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine, gpt2(tied)(IDS).logits, atol=1e-2)
    ad.merge(model)
    torch.testing.assert_close(model(IDS).logits, mine, rtol=1e-5, atol=1e-5)


def test_prompts_of_tasks_are_pefts():
    model = gpt2()
    ad.attach(model, "multitask-prompt", tasks=("a", "b"), p=4, r=2)
    adapter = next(iter(ad.adapters(model)["default"].adapters.values()))
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=2, num_ranks=2
    )
    other = peft.get_peft_model(gpt2(), config).eval()
    encoder = other.prompt_encoder["default"]
    with torch.no_grad():
        for ours, theirs in (
            (adapter.P, encoder.embedding.weight), (adapter.U, encoder.prefix_task_cols), (adapter.V, encoder.prefix_task_rows)
        ):  # fmt: skip
            theirs.copy_(ours.normal_())
    with ad.steer(task=["b", "a", "b"]):
        mine = model(IDS).logits
    peer = other(IDS, task_ids=torch.tensor([1, 0, 1])).logits[:, 4:]
    torch.testing.assert_close(mine, peer, rtol=1e-5, atol=1e-5)
    with ad.steer(task="b"):
        torch.testing.assert_close(model(IDS[:1]).logits, mine[:1], rtol=1e-5, atol=1e-5)
