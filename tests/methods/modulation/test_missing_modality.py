"""Missing-modality SSF: a bank per available set (arXiv:2310.03986)."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MergeError, MethodError, StateError
from tests.methods.helpers import adapted, batch, linear, shake

THREE = ("rgb", "depth", "touch")


class Fusion(nn.Module):
    """Two encoders and a fusion layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rgb, self.depth = (
            nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)),
            nn.Sequential(nn.Linear(5, 8, bias=False)),
        )
        self.fusion = nn.Linear(16, 3)

    def forward(self, rgb, depth):
        return self.fusion(torch.cat([self.rgb(rgb), self.depth(depth)], -1))


def fusion(**settings):
    model = Fusion().double().eval()
    settings = {"branches": {"rgb": "rgb.*", "depth": "depth.*"}, **settings}
    ad.attach(model, "missing-modality", targets=["rgb.*", "depth.*", "fusion"], **settings)
    return model


RGB, DEPTH = batch(4, 6), batch(4, 5)


def test_a_set_runs_its_own_bank_and_the_full_set_none():
    layer, x = linear(), batch(3, 5, 12)
    y = layer.double()(x).detach()
    model, a = adapted(layer, ad.MissingModality(modalities=THREE))
    assert sorted(a.g) == ["depth", "depth+rgb", "depth+touch", "rgb", "rgb+touch", "touch"]
    for key in a.g:
        with ad.steer(available=key):
            assert torch.equal(model(x), y)
    shake(model)
    for available, key in (({"rgb"}, "rgb"), (["touch", "depth"], "depth+touch"), ("rgb+depth", "depth+rgb")):
        with ad.steer(available=available):
            torch.testing.assert_close(model(x), y * (1 + a.g[key]) + a.beta[key])
    assert torch.equal(model(x), y)
    with ad.steer(available=set(THREE)):
        assert torch.equal(model(x), y)


@pytest.mark.parametrize("kind", ["linear", "tokens", "conv", "batch norm"])
def test_rows_of_one_batch_have_their_own_banks(kind):
    torch.manual_seed(0)
    layer, x = {
        "linear": (nn.Linear(12, 20), batch(4, 12)),
        "tokens": (nn.Linear(12, 20), batch(4, 5, 12)),
        "conv": (nn.Conv2d(6, 8, 3), batch(4, 6, 5, 5)),
        "batch norm": (nn.BatchNorm2d(6), batch(4, 6, 5, 5)),
    }[kind]
    model, _ = adapted(layer, ad.MissingModality(modalities=THREE))
    shake(model)
    available = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 1], [0, 1, 0]]).bool()
    with ad.steer(available=available):
        together = model(x)
    for i, row in enumerate(available):
        with ad.steer(available={m for m, there in zip(THREE, row, strict=True) if there}):
            torch.testing.assert_close(together[i], model(x[i : i + 1])[0])


def test_windows_of_a_sample_follow_it():
    model, _ = adapted(linear(), ad.MissingModality())
    shake(model)
    x = batch(6, 4, 12)  # three windows for each of two samples
    with ad.steer(available=torch.tensor([[True, False], [False, True]])):
        together = model(x)
    for key, rows in (("rgb", slice(0, 3)), ("depth", slice(3, 6))):
        with ad.steer(available=key):
            torch.testing.assert_close(together[rows], model(x[rows]))
    with ad.steer(available=torch.ones(4, 2).bool()), pytest.raises(StateError, match="4 samples.*6 rows"):
        model(x)


def test_only_the_steered_bank_trains_and_an_absent_branch_has_none():
    model = fusion()
    keys = set(ad.parameters_of(model))
    assert {k for k in keys if k.startswith("rgb")} == {
        f"rgb.{i}.{v}.rgb" for i in "01" for v in ("g", "beta")
    }
    assert {k for k in keys if k.startswith("depth")} == {"depth.0.g.depth", "depth.0.beta.depth"}
    with ad.steer(available={"rgb"}):
        model(RGB, torch.zeros_like(DEPTH)).square().sum().backward()
        ad.check_gradients(model)
    reached = {k for k, p in ad.parameters_of(model).items() if p.grad is not None and p.grad.any()}
    untouched = {k for k, p in ad.parameters_of(model).items() if p.grad is None}
    assert reached == {k for k in keys if k.endswith(".rgb")} and untouched == keys - reached
    assert all(p.grad is None for n, p in model.named_parameters() if "adaptome" not in n)


def test_training_one_bank_leaves_the_others_and_the_full_set():
    model = fusion()
    full = model(RGB, DEPTH)
    with ad.steer(available="depth"):
        other = model(RGB, DEPTH)
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.1)
    with ad.steer(available="rgb"):
        start = model(RGB, DEPTH * 0)
        for _ in range(3):
            optimizer.zero_grad()
            model(RGB, DEPTH * 0).square().sum().backward()
            optimizer.step()
        assert not torch.allclose(model(RGB, DEPTH * 0), start)
    assert torch.equal(model(RGB, DEPTH), full)
    with ad.steer(available="depth"):
        assert torch.equal(model(RGB, DEPTH), other)


def test_each_set_merges_for_itself():
    model = fusion()
    shake(model)
    base = {k: v.clone() for k, v in model.state_dict().items() if "adaptome" not in k}
    for available in ("rgb", "depth"):
        with ad.steer(available=available):
            before = model(RGB, DEPTH)
            ad.merge(model)
            torch.testing.assert_close(model(RGB, DEPTH), before)
        torch.testing.assert_close(model(RGB, DEPTH), before)  # whatever is steered now
        ad.unmerge(model)
        assert all(torch.equal(model.state_dict()[k], v) for k, v in base.items())
    with ad.steer(available=torch.ones(4, 2).bool()), pytest.raises(MergeError, match="per sample"):
        ad.merge(model)


class Mixed(nn.Module):
    """Two picture encoders of convolutions, one of them depth-wise, and norms, fused by a linear layer; float32."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rgb = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU())
        self.depth = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.GELU())
        self.norm, self.fusion = nn.LayerNorm(12), nn.Linear(12, 4)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
                nn.init.normal_(m.weight), nn.init.normal_(m.bias)

    def forward(self, rgb, depth):
        pooled = [self.rgb(rgb).mean((2, 3)), self.depth(depth).mean((2, 3))]
        return self.fusion(self.norm(torch.cat(pooled, 1)))


PICTURES = batch(4, 3, 5, 5).float(), batch(4, 6, 5, 5).float()
MASKS = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 1]]).bool()


def mixed(move: bool, **settings):
    model = Mixed().eval()
    ad.attach(model, "missing-modality", targets=["convs", "norms", "all-linear"], **settings)
    assert len(ad.adapters(model)["default"].adapters) == 6
    if move:
        shake(model)
    return model


def test_inserted_everywhere_it_starts_as_the_base_bit_for_bit_for_every_set():
    expected, model = Mixed().eval()(*PICTURES), mixed(False)
    for available in ("rgb", "depth", {"rgb", "depth"}, MASKS):
        with ad.steer(available=available):
            assert torch.equal(model(*PICTURES), expected)
    moved = mixed(True)
    assert torch.equal(moved(*PICTURES), expected)  # nothing steered: all are there
    with ad.steer(available=torch.ones(4, 2).bool()):
        assert torch.equal(moved(*PICTURES), expected)
    with ad.steer(available={"depth", "rgb"}):
        assert torch.equal(moved(*PICTURES), expected)


def test_a_bank_folds_into_convolutions_norms_and_linear_layers_and_out_again():
    model = mixed(True)
    own = {k: v.clone() for k, v in model.state_dict().items() if "adaptome" not in k}
    for available in ("rgb", "depth"):
        with ad.steer(available=available):
            before = model(*PICTURES)
            assert len(ad.merge(model).created) == 1  # the depth-wise convolution had no bias
            after = model(*PICTURES)
            assert (after - before).abs().max() < 1e-5 * before.abs().max()
            ad.unmerge(model)
            assert torch.equal(model(*PICTURES), before)
        assert all(torch.equal(model.state_dict()[k], v) for k, v in own.items())


def test_rows_of_a_mixed_batch_are_what_each_is_alone():
    model = mixed(True)
    with ad.steer(available=MASKS):
        together = model(*PICTURES)
    for i, row in enumerate(MASKS):
        with ad.steer(available={m for m, there in zip(("rgb", "depth"), row, strict=True) if there}):
            torch.testing.assert_close(together[i : i + 1], model(*(x[i : i + 1] for x in PICTURES)), atol=1e-6, rtol=1e-6)  # fmt: skip


def test_switching_back_and_forth_is_exact():
    model, seen = mixed(True), {"rgb": [], "depth": [], "depth+rgb": []}
    for available in ("rgb", "depth", "depth+rgb", "depth", "rgb", "depth+rgb"):
        with ad.steer(available=available):
            seen[available].append(model(*PICTURES))
    assert all(torch.equal(a, b) for a, b in seen.values())
    assert not torch.equal(seen["rgb"][0], seen["depth"][0])


def test_adapting_leaves_running_statistics_and_the_whole_base():
    model = mixed(False).train()
    base = {k: v.clone() for k, v in model.state_dict().items() if "adaptome" not in k}
    full = model(*PICTURES)
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.1, weight_decay=0.1)
    for available in ("rgb", "depth", "rgb"):
        with ad.steer(available=available):
            model(*PICTURES).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in base.items())
    assert torch.equal(model(*PICTURES), full)


def test_weight_decay_pulls_to_the_identity():
    model = mixed(True)
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=1.0, weight_decay=1.0)
    for parameter in ad.parameters_of(model).values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with ad.steer(available="rgb"):
        assert torch.equal(model(*PICTURES), Mixed().eval()(*PICTURES))


@pytest.mark.parametrize(("scale", "shift"), [(True, False), (False, True)])
def test_scale_or_shift_alone(scale, shift):
    model = mixed(True, scale=scale, shift=shift)
    both = ad.plan(Mixed(), "missing-modality", targets=["convs", "norms", "all-linear"]).trainable
    assert ad.trainable(model).count == both // 2
    with ad.steer(available="rgb"):
        before = model(*PICTURES)
        ad.merge(model)
        torch.testing.assert_close(model(*PICTURES), before)
    with pytest.raises(MethodError, match="missing-modality: scale and shift are both off"):
        ad.MissingModality(scale=False, shift=False)


def test_a_file_for_one_set_holds_its_numbers_alone(tmp_path):
    model = fusion(sets=["rgb"])
    shake(model)
    ad.save(model, tmp_path / "rgb")
    other = Fusion().double().eval()
    ad.load(other, tmp_path / "rgb")
    stored = load_file(tmp_path / "rgb" / "adapter.safetensors")
    assert sum(v.numel() for v in stored.values()) == 2 * (8 + 8 + 3)
    assert sum(v.numel() for v in ad.parameters_of(other).values()) == 2 * (8 + 8 + 3)
    with ad.steer(available="rgb"):
        assert torch.equal(other(RGB, DEPTH), model(RGB, DEPTH))


def test_it_compiles_with_every_kind_of_fact():
    model, _ = adapted(linear(), ad.MissingModality())
    shake(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = batch(2, 5, 12)
    for available in (
        {"rgb"},
        "depth",
        torch.tensor([[True, False], [False, True]]),
        torch.tensor([[True, True], [False, True]]),
    ):
        with ad.steer(available=available):
            torch.testing.assert_close(compiled(x), model(x))


def test_unknown_sets_and_bad_settings_are_refused():
    model, _ = adapted(linear(), ad.MissingModality(modalities=THREE, sets=["rgb"]))
    for available in ("depth", "sound"):
        with ad.steer(available=available), pytest.raises(StateError, match=f"no bank is for '{available}'"):
            model(batch(4, 12))
    with (
        ad.steer(available=torch.tensor([[1, 0, 0], [0, 1, 0]])),
        pytest.raises(StateError, match=r"samples \[1\]"),
    ):
        model(batch(2, 12))
    for wrong in (torch.ones(2, 2), torch.ones(2, 4), torch.ones(2)):
        with ad.steer(available=wrong.bool()), pytest.raises(StateError, match=r"give \[batch, 3\]"):
            model(batch(2, 12))
    with pytest.raises(MethodError, match="did you mean|Did you mean 'depth'"):
        ad.MissingModality(sets=["dpeth"])
    with pytest.raises(MethodError, match="all modalities has no bank"):
        ad.MissingModality(sets=["depth+rgb"])
    with pytest.raises(MethodError, match="two or more"):
        ad.MissingModality(modalities=["rgb"])


@pytest.mark.parametrize(
    ("depths", "base", "count"),
    [
        ((3, 4, 6, 3), 24_196_288, 141_440),
        ((3, 4, 18, 3), 44_072_128, 272_000),
        ((3, 8, 27, 3), 60_842_688, 387_328),
    ],
    ids=["b2", "b3", "b4"],
)
def test_counts_are_the_sheets(depths, base, count):
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(depths=depths, hidden_sizes=(64, 128, 320, 512))
    with torch.device("meta"):
        model = SegformerModel(config)
    plan = ad.plan(model, "missing-modality", sets=["rgb"], targets=["all-linear", "norms", "convs"])
    assert (plan.total - plan.trainable, plan.trainable) == (base, count)


def test_a_bank_of_vilt_is_two_vectors_a_layer():
    from transformers import ViltConfig, ViltModel

    with torch.device("meta"):
        vilt = ViltModel(ViltConfig(), add_pooling_layer=False)
    outside = ["=layernorm", "LayerNorm"]  # the last norm and the text embeddings'
    plan = ad.plan(vilt, "missing-modality", sets=["rgb"], targets=["all-linear", "norms"], exclude=outside)
    assert plan.trainable == 12 * 22 * 768 == 202_752


# -- absent="skip" -------------------------------------------------------------------------------------------------

ZEROS = RGB * 0, DEPTH * 0
WITH_ROOTS = ["rgb", "depth", "rgb.layers.*", "depth.layers.*", "fusion"]


class Encoder(nn.Module):
    """What nn.Sequential does, in a module with a forward of its own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def encoders():
    model = Fusion().double().eval()
    model.rgb, model.depth = Encoder(model.rgb), Encoder(model.depth)
    return model


def skipping():
    """The same model twice, one that runs absent branches and one that skips them, with the same banks."""
    models = []
    for absent, targets in (("zero_input", WITH_ROOTS[2:]), ("skip", WITH_ROOTS)):
        model, branches = encoders(), {"rgb": "rgb.*", "depth": "depth.*"}
        ad.attach(model, "missing-modality", targets=targets, branches=branches, absent=absent)
        shake(model)
        models.append(model)
    return models


def rows_run(model, branch, *inputs):
    """How many rows a branch's first layer was run on."""
    seen = []
    hook = (
        getattr(model, branch).layers[0].register_forward_hook(lambda _m, args, _y: seen.append(len(args[0])))
    )
    model(*inputs)
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize(("available", "absent"), [("rgb", "depth"), ("depth", "rgb")])
def test_a_skipped_branch_gives_what_it_makes_of_zeros_and_runs_for_one_row(available, absent):
    runs, skips = skipping()
    inputs = [
        x if name == available else z
        for name, x, z in zip(("rgb", "depth"), (RGB, DEPTH), ZEROS, strict=True)
    ]
    with ad.steer(available=available):
        torch.testing.assert_close(skips(*inputs), runs(*inputs), rtol=1e-12, atol=1e-12)
        assert rows_run(runs, absent, *inputs) == rows_run(skips, available, *inputs) == 4
        assert rows_run(skips, absent, *inputs) == 1
    assert torch.equal(skips(RGB, DEPTH), encoders()(RGB, DEPTH))
    assert rows_run(skips, absent, RGB, DEPTH) == 4


def test_skipping_trains_the_same_bank_with_the_same_gradients():
    found = []
    for model in skipping():
        with ad.steer(available="rgb"):
            model(RGB, ZEROS[1]).square().sum().backward()
            ad.check_gradients(model)
        found.append({k: p.grad for k, p in ad.parameters_of(model).items() if p.grad is not None})
    assert set(found[0]) == set(found[1]) and found[0]
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad)


def test_skipping_costs_no_parameter_and_goes_with_saving_merging_and_masks(tmp_path):
    runs, skips = skipping()
    assert ad.trainable(runs).count == ad.trainable(skips).count
    ad.save(skips, tmp_path / "skips")
    other = encoders()
    ad.load(other, tmp_path / "skips")
    mask = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 1]]).bool()
    with ad.steer(available=mask):  # rows that differ: every branch runs on all
        assert torch.equal(skips(RGB, DEPTH), runs(RGB, DEPTH))
    with ad.steer(available="rgb"):
        before = skips(RGB, ZEROS[1])
        assert torch.equal(other(RGB, ZEROS[1]), before)
        ad.merge(skips)
    torch.testing.assert_close(skips(RGB, ZEROS[1]), before)


def test_a_branch_may_give_and_take_more_than_one_tensor():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 8)

        def forward(self, x, positions=None, *, options):
            y = self.layer(x[0]) + positions
            return {"tokens": y, "pooled": (y.mean(1), options)}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.depth = Branch()

        def forward(self, x, positions):
            return self.depth((x,), positions, options={"mode": "plain"})

    model, positions = Whole().double(), batch(1, 3, 8)
    x = torch.zeros(4, 3, 5).double()
    expected = model(x, positions)
    ad.attach(
        model, "missing-modality", targets=["depth", "depth.*"], branches={"depth": "depth.*"}, absent="skip"
    )
    with ad.steer(available="rgb"):
        found = model(x, positions)
    assert found["pooled"][1] == {"mode": "plain"} and found["tokens"].shape == (4, 3, 8)
    torch.testing.assert_close(found["tokens"], expected["tokens"])
    torch.testing.assert_close(found["pooled"][0], expected["pooled"][0])


def test_what_cannot_be_skipped_is_told():
    _, skips = skipping()
    with (
        ad.steer(available="rgb"),
        pytest.raises(StateError, match="'depth' is absent, but the rows of its input differ"),
    ):
        skips(RGB, DEPTH)
    with pytest.raises(MethodError, match="give branches"):
        ad.MissingModality(absent="skip")
    branches = {"rgb": "rgb.*", "depth": "depth.*"}
    with pytest.raises(MethodError, match=r"branches of \['rgb'\] are no targets.*\n.*Add \['rgb'\]"):
        ad.attach(encoders(), "missing-modality", targets=WITH_ROOTS[1:], branches=branches, absent="skip")
    with pytest.raises(HostError, match="this is a module"):
        ad.attach(encoders(), "missing-modality", targets=WITH_ROOTS, branches=branches)
    with pytest.raises(MethodError, match="Did you mean 'skip'"):
        ad.MissingModality(absent="skipp")
    with pytest.raises(HostError, match="a Sequential runs or lists all it holds"):
        ad.attach(Fusion(), "missing-modality", targets=["rgb", "depth"], branches=branches, absent="skip")
