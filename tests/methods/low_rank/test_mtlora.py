"""MTLoRA: shared and task streams (arXiv:2403.20320)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError, MethodError, StateError, TargetError
from adaptome.core.streams import fork, split
from tests.methods.helpers import adapted, batch, linear, shake

TASKS = ("semseg", "depth")
SMALL = dict(tasks=TASKS, r=3, task_r=2, scale=0.7, dropout=0.0)
LAST = ("*.0.blocks.1.*", "*.1.blocks.1.*")


def update(a, *branches):
    return 0.7 * sum((a.B[k] @ a.A[k] for k in branches), torch.zeros(a.host.shape, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["matrix", "matrixv2"])
def test_every_stream_is_its_equation(mode):
    layer, x = linear(), batch(3, 5, 12)
    model, a = adapted(layer, ad.MTLoRA(**SMALL, mode=mode))
    shake(model)
    W, b = a.host.weight(), layer.bias
    also = ["shared"] if mode == "matrixv2" else []
    torch.testing.assert_close(model(x), x @ (W + update(a, "shared")).T + b)
    for task in TASKS:
        with ad.steer(task=task):
            torch.testing.assert_close(model(x), x @ (W + update(a, task, *also)).T + b)
    own = {t: batch(3, 5, 12) * k for k, t in enumerate(TASKS, 2)}  # x_t is not x
    with ad.steer(streams=TASKS):
        shared, *rest = split(model(torch.cat([x, *own.values()])), 2)
    torch.testing.assert_close(shared, x @ (W + update(a, "shared")).T + b)
    for task, y in zip(TASKS, rest, strict=True):
        torch.testing.assert_close(y, x @ (W + update(a, *also)).T + b + own[task] @ update(a, task).T)


def normalised(h, norm):
    """LayerNorm, written out."""
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_addition_normalises_the_sum_of_the_tasks_streams():
    layer, x = linear(), batch(3, 5, 12)
    model, a = adapted(layer, ad.MTLoRA(**SMALL, mode="addition"))
    assert set(a.A) == set(TASKS)
    W, b = a.host.weight(), layer.bias
    frozen = x @ W.T + b
    torch.testing.assert_close(
        model(x), frozen + normalised(2 * frozen, a.norm)
    )  # it does not start as the base
    for task in TASKS:  # but every task's stream does
        with ad.steer(task=task):
            assert torch.equal(model(x), nn.functional.linear(x, W, b))
    shake(model)
    total = 2 * frozen + x @ update(a, *TASKS).T
    torch.testing.assert_close(model(x), frozen + normalised(total, a.norm))
    own = {t: batch(3, 5, 12) * k for k, t in enumerate(TASKS, 2)}
    with ad.steer(streams=TASKS):
        shared, *rest = split(model(torch.cat([x, *own.values()])), 2)
    made = [frozen + own[t] @ update(a, t).T for t in TASKS]
    for y, expected in zip(rest, made, strict=True):
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(shared, frozen + normalised(sum(made), a.norm))
    with ad.steer(streams=TASKS[1:]):  # of fewer tasks, the sum of theirs
        alone = split(model(fork(x, TASKS[1:])), 1)[0]
    torch.testing.assert_close(alone, frozen + normalised(frozen + x @ update(a, TASKS[1]).T, a.norm))
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in a.parameters())
    ad.activate(model, "default", weights={"default": 0.5})
    torch.testing.assert_close(model(x), frozen + 0.5 * normalised(total, a.norm))


def test_additions_shared_stream_has_no_weight_and_a_tasks_has(tmp_path):
    model, a = adapted(linear(bias=False), ad.MTLoRA(**SMALL, mode="addition"))
    shake(model)
    for verb in (lambda: ad.merge(model), lambda: ad.export(model, tmp_path / "out")):
        with pytest.raises(MergeError, match="which no weight does"):
            verb()
    x = batch(4, 12)
    with ad.steer(task="depth"):
        expected = model(x)
        assert ad.export(model, tmp_path / "out").worst == 0
        ad.merge(model)
        torch.testing.assert_close(model(x), expected)


def test_lora_only_has_no_streams():
    layer, x = linear(), batch(4, 12)
    model, a = adapted(layer, ad.MTLoRA(**SMALL, mode="lora_only"))
    assert set(a.A) == {"shared"}
    shake(model)
    expected = x @ (a.host.weight() + update(a, "shared")).T + layer.bias
    torch.testing.assert_close(model(x), expected)
    with ad.steer(task="depth"):
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("mode", ["matrix", "matrixv2", "addition", "lora_only"])
@pytest.mark.parametrize("train_scale", [False, True])
def test_the_formula_counts_every_mode(mode, train_scale):
    method = ad.MTLoRA(**SMALL, mode=mode, train_scale=train_scale, specific=["*1"])
    model = nn.Sequential(linear(), linear(20, 8))
    plan = ad.attach(model, method, targets=["0", "1"])
    pair = {"matrix": 3 + 4, "matrixv2": 3 + 4, "addition": 4, "lora_only": 3}[mode]
    streams = {"matrix": 3, "matrixv2": 3, "addition": 2, "lora_only": 1}[mode]
    expected = 3 * 32 + pair * 28 + 16 * (mode == "addition") + train_scale * (1 + streams)
    assert plan.trainable == ad.trainable(model).count == expected


def test_addition_is_refused_on_convolutions():
    with pytest.raises(ad.errors.HostError, match="mode='addition' normalises the outputs of linear layers"):
        adapted(nn.Conv2d(6, 8, 3), ad.MTLoRA(**SMALL, mode="addition"))


def test_convolutions_have_streams_too():
    torch.manual_seed(0)
    model, _ = adapted(nn.Conv2d(6, 8, 3, groups=2), ad.MTLoRA(**SMALL))
    shake(model)
    x = batch(2, 6, 5, 5)
    with ad.steer(streams=TASKS):
        stacked = split(model(fork(x, TASKS)), 2)
    torch.testing.assert_close(stacked[0], model(x))
    with ad.steer(task="depth"):
        torch.testing.assert_close(stacked[2], model(x))


@pytest.mark.parametrize("task", [None, *TASKS])
def test_a_stream_merges_exactly_and_several_do_not(task):
    layer, x = linear(), batch(4, 12)
    model, a = adapted(layer, ad.MTLoRA(**SMALL))
    shake(model)
    W = a.host.weight().clone()
    with ad.steer(**({"task": task} if task else {})):
        expected = model(x)
        ad.merge(model)
        torch.testing.assert_close(layer._parameters["weight"], W + update(a, task or "shared"))
        torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)
    assert torch.equal(layer._parameters["weight"], W)
    with ad.steer(streams=TASKS), pytest.raises(MergeError, match="no one weight"):
        ad.merge(model)
    assert torch.equal(layer._parameters["weight"], W)


def test_a_layer_without_task_branches_merges_under_streams():
    model, _ = adapted(linear(), ad.MTLoRA(**{**SMALL, "specific": ["other"]}))
    shake(model)
    with ad.steer(streams=TASKS):
        before = model(fork(batch(2, 12), TASKS))
        ad.merge(model)
        torch.testing.assert_close(model(fork(batch(2, 12), TASKS)), before)


def swin(depths=(2, 2), mode="matrix"):
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=list(depths),
        num_heads=[2, 2],
        window_size=4,
        drop_path_rate=0.0,
    )
    model = SwinModel(config, add_pooling_layer=False).double().eval()
    ad.attach(
        model, "mtlora", targets=["all-linear"], exclude="*.reduction", **SMALL, specific=LAST, mode=mode
    )
    return model


IMAGES = batch(2, 3, 32, 32)


STAGES = {f"encoder.layers.{i}.blocks.1": f"encoder.layers.{i}" for i in (0, 1)}


def features(model, tasks=TASKS):
    """What each stage gives to the decoders: a list of {'shared': [batch, tokens, width], task: ...}."""
    return ad.TaskStreams(model, tasks, STAGES)(IMAGES)


def test_the_encoder_gives_what_stacking_all_of_it_gives():
    model = swin()
    shake(model)
    expected = []

    def leave(module, args, output):
        streams = split(output[0], 2)
        expected.append(streams)
        return (fork(streams[0], TASKS), *output[1:])

    hooks = [stage.register_forward_hook(leave) for stage in model.encoder.layers]
    with ad.steer(streams=TASKS):
        last = split(model(fork(IMAGES, TASKS)).last_hidden_state, 2)[0]
    for hook in hooks:
        hook.remove()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = features(model)
    for stage, streams in zip(found, expected, strict=True):
        for x, y in zip(stage.values(), streams, strict=True):
            torch.testing.assert_close(x, y)
    assert found[0]["depth"].shape == (2, 64, 16) and found[1]["depth"].shape == (2, 64, 16)
    # nothing is left on the encoder
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(IMAGES).last_hidden_state, last)
    assert ad.steered("streams") is None


def test_the_cost_grows_with_the_last_blocks_alone():
    from torch.utils.flop_counter import FlopCounterMode

    model = swin(depths=(4, 4))
    stages = {f"encoder.layers.{i}.blocks.3": f"encoder.layers.{i}" for i in (0, 1)}

    def cost(run):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops()

    plain = cost(lambda: model(IMAGES))
    one, two = (cost(lambda t=t: ad.TaskStreams(model, t, stages)(IMAGES)) for t in (TASKS[:1], TASKS))
    stacked = cost(lambda: model(fork(IMAGES, TASKS)))
    assert plain < one < two < 1.8 * plain and stacked == pytest.approx(3 * plain, rel=0.02)


def test_what_has_no_tasks_runs_as_a_larger_batch_and_faults_are_told():
    model = swin()
    ad.detach(model)
    ad.attach(model, "lora", targets=["all-linear"], r=2)
    shake(model)
    for stage in features(model):
        torch.testing.assert_close(stage["depth"], stage["shared"])
    with pytest.raises(TargetError, match="Did you mean 'encoder.layers.0'"):
        ad.TaskStreams(model, TASKS, {"encoder.layer.0": "encoder.layers.0"})
    nested = {"encoder.layers.0": "encoder.layers.1", "encoder.layers.1.blocks.0": "encoder.layers.1"}
    with pytest.raises(StateError, match="begins inside another"):
        ad.TaskStreams(model, TASKS, nested)(IMAGES)
    assert ad.steered("streams") is None and not model.encoder.layers[0]._forward_pre_hooks
    model.gradient_checkpointing_enable()
    with pytest.raises(StateError, match="turn it off"):
        ad.TaskStreams(model, TASKS, STAGES).train()(IMAGES)


def test_trained_scales_are_numbers_of_each_branch():
    layer, x = linear(), batch(4, 12)
    model, a = adapted(layer, ad.MTLoRA(**SMALL, train_scale=True, mode="matrixv2"))
    plain, b = adapted(linear(), ad.MTLoRA(**SMALL, mode="matrixv2"))
    assert sum(p.numel() for p in a.parameters()) == sum(p.numel() for p in b.parameters()) + 3
    shake(model)
    W, s = a.host.weight(), a.s
    with ad.steer(task="depth"):
        update = s["shared"] * a.B["shared"] @ a.A["shared"] + s["depth"] * a.B["depth"] @ a.A["depth"]
        torch.testing.assert_close(model(x), x @ (W + update).T + layer.bias)
        model(x).square().sum().backward()
        assert s["depth"].grad != 0 and s["shared"].grad != 0 and s["semseg"].grad is None
        expected = model(x)
        ad.merge(model)
        torch.testing.assert_close(model(x), expected)


def test_all_streams_start_as_the_frozen_encoder():
    model = swin()
    with ad.disabled(model):
        frozen = features(model)
    for stage, before in zip(features(model), frozen, strict=True):
        for stream in stage.values():
            torch.testing.assert_close(stream, before["shared"])


def test_task_branches_sit_in_last_blocks_beside_attentions_input():
    model = swin()
    tasks = {k.split(".A.")[0] for k in ad.parameters_of(model) if k.endswith(".A.depth")}
    blocks = {f"encoder.layers.{i}.blocks.1" for i in (0, 1)}
    assert tasks == {f"{b}.{n}" for b in blocks for n in ("attention.o_proj", "mlp.fc1", "mlp.fc2")}
    for name, plain in ad.adapters(model)["default"].adapters.items():
        assert set(plain.A) == ({"shared", *TASKS} if name in tasks else {"shared"})


def test_a_task_moves_its_own_stream_alone_and_feeds_no_later_stage():
    model = swin()
    shake(model)
    before = features(model)
    with torch.no_grad():
        for key, p in ad.parameters_of(model).items():
            if "layers.0" in key and key.endswith(".depth"):
                p.mul_(1.5)
    after = features(model)
    changed = [{k for k in stage if not torch.equal(stage[k], after[i][k])} for i, stage in enumerate(before)]
    assert changed == [{"depth"}, set()]
    with torch.no_grad():
        for key, p in ad.parameters_of(model).items():
            if "layers.0.blocks.0" in key:
                p.mul_(1.5)
    moved = features(model)
    assert all(not torch.equal(moved[i][k], after[i][k]) for i in (0, 1) for k in moved[i])


def test_with_addition_a_task_reaches_the_others_and_later_stages_through_the_shared_stream():
    model = swin(mode="addition")
    shake(model)
    before = features(model)
    with torch.no_grad():
        for key, p in ad.parameters_of(model).items():
            if "layers.0" in key and key.endswith(".depth"):
                p.mul_(1.5)
    after = features(model)
    changed = [{k for k in stage if not torch.equal(stage[k], after[i][k])} for i, stage in enumerate(before)]
    assert changed == [{"shared", *TASKS}] * 2  # W acts on the shared input in every stream


def test_a_tasks_loss_gives_the_others_no_gradient():
    model = swin()
    shake(model)
    sum(stage["depth"].square().sum() for stage in features(model)).backward()
    gradients = {k: p.grad for k, p in ad.parameters_of(model).items()}
    assert not any(g is not None and g.any() for k, g in gradients.items() if k.endswith(".semseg"))
    assert all(g is not None and g.any() for k, g in gradients.items() if k.endswith(".depth"))
    # below the last block of a stage every update is shared, and the task's loss reaches it
    assert all(g is not None and g.any() for k, g in gradients.items() if "blocks.0" in k)


def test_the_frozen_part_runs_once_for_all_streams():
    layer = linear()
    model, _ = adapted(layer, ad.MTLoRA(**SMALL))
    seen = []
    base = nn.functional.linear

    def counted(x, weight, bias=None):
        if weight is layer._parameters["weight"]:
            seen.append(x.shape[0])
        return base(x, weight, bias)

    nn.functional.linear = counted
    try:
        with ad.steer(streams=TASKS):
            model(fork(batch(4, 12), TASKS))
    finally:
        nn.functional.linear = base
    assert seen == [4]


def test_dropout_leaves_task_inputs_alone():
    model, a = adapted(linear(), ad.MTLoRA(**{**SMALL, "dropout": 0.5}))
    shake(model)
    model.train()
    x = fork(batch(4, 12), TASKS)
    with ad.steer(streams=TASKS):
        first, second = split(model(x), 2), split(model(x), 2)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])


def test_it_compiles_with_a_task_and_with_streams():
    model, _ = adapted(linear(), ad.MTLoRA(**SMALL))
    shake(model)
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), batch(4, 12)
    for facts in ({}, {"task": "depth"}, {"task": "semseg"}, {"streams": TASKS}):
        with ad.steer(**facts):
            rows = fork(x, TASKS) if "streams" in facts else x
            torch.testing.assert_close(compiled(rows), model(rows))


def test_wrong_tasks_and_rows_are_told():
    model, _ = adapted(linear(), ad.MTLoRA(**SMALL))
    with ad.steer(task="dpeth"), pytest.raises(StateError, match="Did you mean 'depth'"):
        model(batch(4, 12))
    with ad.steer(streams=["dpeth"]), pytest.raises(StateError, match="Did you mean 'depth'"):
        model(batch(4, 12))
    with ad.steer(streams=TASKS), pytest.raises(StateError, match="4 rows are not 3 equal streams"):
        model(batch(4, 12))
    with pytest.raises(MethodError, match="different names"):
        ad.MTLoRA(tasks=["a", "a"])


class FusedSwin(nn.Module):
    """The layers of Swin-T as the authors' code has them, with queries, keys and values in one."""

    def __init__(self):
        super().__init__()

        def block(c):
            return nn.ModuleDict(
                {
                    "qkv": nn.Linear(c, 3 * c),
                    "proj": nn.Linear(c, c),
                    "fc1": nn.Linear(c, 4 * c),
                    "fc2": nn.Linear(4 * c, c),
                }
            )

        widths = (96, 192, 384, 768)
        self.stages = nn.ModuleList(
            nn.ModuleList(block(c) for _ in range(d)) for c, d in zip(widths, (2, 2, 6, 2), strict=True)
        )
        self.reductions = nn.ModuleList(nn.Linear(4 * c, 2 * c, bias=False) for c in widths[:-1])


FUSED_LAST = tuple(
    f"stages.{i}.{j}.{n}" for i, j in ((0, 1), (1, 1), (2, 5), (3, 1)) for n in ("proj", "fc1", "fc2")
)
DECODERS, EXTRA = 1_946_624, 23_232 + 23_322 + 4_704 + 1_548_288


@pytest.mark.parametrize(
    ("r", "task_r", "plus", "count"),
    [
        (16, 4, False, 4_953_146), (32, 4, False, 6_083_642), (64, 4, False, 8_344_634),
        (4, 4, True, 2_573_114), (8, 8, True, 3_148_346), (16, 16, True, 4_298_810), (64, 4, True, 7_054_394),
    ],
)  # fmt: skip
def test_counts_are_the_sheets(r, task_r, plus, count):
    with torch.device("meta"):
        model = FusedSwin()
    plan = ad.plan(
        model, "mtlora", r=r, task_r=task_r, specific=FUSED_LAST,
        targets=["*.qkv", "*.proj", "*.fc1", "*.fc2", *(["reductions.*"] if plus else [])],
    )  # fmt: skip
    assert plan.trainable == 70_656 * r + 69_120 * task_r + plus * 4_032 * r
    assert plan.trainable + DECODERS + EXTRA - plus * 1_548_288 == count


def test_counts_on_transformers_swin_with_separate_maps():
    from transformers import SwinConfig, SwinModel

    with torch.device("meta"):
        model = SwinModel(SwinConfig(), add_pooling_layer=False)
    last = tuple(f"encoder.layers.{i}.blocks.{j}.*" for i, j in ((0, 1), (1, 1), (2, 5), (3, 1)))
    plan = ad.plan(
        model, "mtlora", r=16, task_r=4, specific=last, targets="all-linear", exclude="*.reduction"
    )
    # q, k, v apart cost 6 C r instead of 4 C r
    assert plan.trainable == 18 * 4416 * 16 + 69_120 * 4
    extra = sum(
        p.numel() for n, p in model.named_parameters()
        if n not in ("layernorm.weight", "layernorm.bias")  # the last norm, which the authors' encoder lacks
        and any(k in n for k in ("norm", "relative_position_bias_table", "patch_embeddings", "reduction"))
    )  # fmt: skip
    assert extra == EXTRA == 1_599_546


@pytest.mark.parametrize("mode", ["matrix", "matrixv2", "addition"])
@pytest.mark.parametrize("train_scale", [False, True])
def test_ranks_and_scales_by_task(mode, train_scale):
    layer, x = linear(), batch(3, 5, 12)
    settings = SMALL | {"task_ranks": {"depth": 5}, "task_scales": {"shared": 0.4, "semseg": 1.3}}
    method = ad.MTLoRA(**settings, mode=mode, train_scale=train_scale)
    model, a = adapted(layer, method)
    assert a.A["depth"].shape == (5, 12) and a.A["semseg"].shape == (2, 12)
    assert ad.trainable(model).count == method.parameters(a.host)
    shake(model)
    scales = {"shared": 0.4, "semseg": 1.3, "depth": 0.7}
    if train_scale:
        assert a.s["depth"].dtype == torch.float64
        scales = {k: v.item() for k, v in a.s.items()}
    W, b = a.host.weight(), layer.bias
    for task in TASKS:
        names = ["shared", task] if mode == "matrixv2" else [task]
        dW = sum(scales[k] * a.B[k] @ a.A[k] for k in names)
        with ad.steer(task=task):
            torch.testing.assert_close(model(x), x @ (W + dW).T + b)


def test_ranks_and_scales_of_no_task_are_refused():
    with pytest.raises(MethodError, match="task_ranks names 'dept'.*depth"):
        ad.MTLoRA(**SMALL, task_ranks={"dept": 3})
    with pytest.raises(MethodError, match=r"task_ranks\['depth'\] = 0 must be a whole number"):
        ad.MTLoRA(**SMALL, task_ranks={"depth": 0})
    with pytest.raises(MethodError, match=r"task_scales\['depth'\] = 'a'"):
        ad.MTLoRA(**SMALL, task_scales={"depth": "a"})
