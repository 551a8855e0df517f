"""AIM: its equations on CLIP's blocks, frames that come in order, sets of streams, counts at full size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError

transformers = pytest.importorskip("transformers")

D, T = 16, 4


def vision(layers: int = 2):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=D, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )  # fmt: skip
    return transformers.CLIPVisionModel(config).eval()


def perturb(model, *parts: str) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adaptome." in name and (
                not parts or f".{name.split('.adaptome.')[1].split('.')[1]}." in parts
            ):
                parameter.add_(torch.randn_like(parameter) * 0.3)


def test_a_block_is_the_equations():
    model, x = vision(1), torch.randn(2 * T, 5, D)
    ad.attach(model, "aim", size=3, reduction=0, scale=0.7)
    perturb(model)
    block = model.encoder.layers[0]
    own = block.adaptome["default"]

    def small(net, h):
        return F.linear(F.gelu(F.linear(h, net.D, net.d)), net.U, net.u)

    with torch.no_grad(), ad.steer(frames=T):
        y = block(x, attention_mask=None)
        lines = block.layer_norm1(x).view(2, T, 5, D).transpose(1, 2).reshape(10, T, D)
        over = block.self_attn(hidden_states=lines)[0].view(2, 5, T, D).transpose(1, 2).reshape(2 * T, 5, D)
        z = x + small(own.T[0], over)
        h = block.self_attn(hidden_states=block.layer_norm1(z))[0]
        z = z + h + small(own.S[0], h)
        n = block.layer_norm2(z)
        expected = z + block.mlp(n) + 0.7 * small(own.M[0], n)
    torch.testing.assert_close(y, expected)


def test_only_the_attention_over_time_sees_the_order_of_frames():
    model, x = vision(), torch.randn(T, 3, 16, 16)
    with torch.no_grad():
        base = model(x).pooler_output
    ad.attach(model, "aim", size=3, reduction=0)
    order = torch.tensor([2, 0, 3, 1])

    def clip(pixels):
        with torch.no_grad(), ad.steer(frames=T):
            return model(pixels).pooler_output.mean(0)

    with torch.no_grad(), ad.steer(frames=T):
        assert torch.equal(model(x).pooler_output, base), "starts as the base, frame by frame"
    shuffled = torch.tensor([3, 2, 1, 0])
    with torch.no_grad(), ad.steer(frames=T):
        torch.testing.assert_close(model(x[shuffled]).pooler_output.mean(0), base.mean(0))
    perturb(model)
    torch.testing.assert_close(
        clip(x[order]), clip(x)
    )  # attention itself is blind to the order: only places in time tell
    with torch.no_grad(), ad.steer(frames=1):
        assert not torch.allclose(model(x).pooler_output.mean(0), clip(x), atol=1e-4), "frames see each other"


def test_streams_have_networks_of_their_own():
    model, x = vision(), torch.randn(2, 3, 16, 16)
    plan = ad.attach(model, "aim", size=3, reduction=0, sets=("frames", "parsing+landmarks"))
    assert plan.trainable == 2 * 2 * 3 * (2 * D * 3 + 3 + D)
    perturb(model)
    made = {}
    for stream in ("frames", "parsing", "landmarks"):
        with ad.steer(stream=stream), torch.no_grad():
            made[stream] = model(x).pooler_output
    assert torch.equal(made["parsing"], made["landmarks"])
    assert not torch.allclose(made["frames"], made["parsing"], atol=1e-4)
    with pytest.raises(StateError, match="no stream is steered"):
        model(x)
    with ad.steer(stream="depth"), pytest.raises(StateError, match="'depth' is none of them"):
        model(x)


def test_counts_of_the_papers_encoders():
    for sizes, expected in (((768, 12), 10_651_392), ((1024, 24), 37_840_896)):
        config = transformers.CLIPVisionConfig(hidden_size=sizes[0], num_hidden_layers=sizes[1], num_attention_heads=sizes[0] // 64, patch_size=16)  # fmt: skip
        with torch.device("meta"):
            model = transformers.CLIPVisionModel(config)
        assert ad.plan(model, "aim").trainable == expected
        assert ad.plan(model, "aim", sets=("frames", "parsing+landmarks")).trainable == 2 * expected
        assert ad.plan(model, "aim", temporal=False).trainable == expected * 2 // 3


def test_gradient_checkpointing_keeps_every_bit():
    model, x = vision(), torch.randn(2 * T, 3, 16, 16)
    ad.attach(model, "aim", size=3, reduction=0)
    perturb(model)

    def gradients():
        model.train()
        model.zero_grad()
        with ad.steer(frames=T):
            out = model(x).pooler_output
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain, grads = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": ad.steered_again})
    again, repeated = gradients()
    assert torch.equal(plain, again) and all(map(torch.equal, grads, repeated))


def test_rows_may_leave_parts_out_in_training_alone():
    model, x = vision(1), torch.randn(8, 3, 16, 16)
    ad.attach(model, "aim", size=3, reduction=0, drop_path=0.9)
    perturb(model, ".T.", ".M.")
    with torch.no_grad():
        whole, again = model(x).pooler_output, model(x).pooler_output
        assert torch.equal(whole, again)
        model.train()
        assert not torch.allclose(model(x).pooler_output, whole, atol=1e-4)


def test_what_cannot_be_is_told():
    model = vision()
    with pytest.raises(HostError, match="no block that it knows"):
        ad.attach(model, "aim", targets="mlp-blocks")
    with pytest.raises(MethodError, match="'frames' is in two of sets"):
        ad.AIM(sets=("frames", "frames+parsing"))
    ad.attach(model, "aim", size=3)
    with ad.steer(frames=3), pytest.raises(StateError, match="4 rows are no whole clips of frames=3"):
        model(torch.randn(4, 3, 16, 16))
    other = vision()
    ad.attach(other, "series", "first", targets="blocks", size=3)
    ad.attach(other, "aim", "second", size=3)
    ad.activate(other, ["first", "second"])
    with pytest.raises(StateError, match="Attach aim first"):
        other(torch.randn(4, 3, 16, 16))
