"""Merging: write what the weight adapters make of the weights into the layers, and take it back.

The sum is done in at least float32 and rounded once to the stored type. The layers get new parameter objects and keep the old ones, so
unmerging gives the very bits back, and a weight that is tied to another layer is untied, not changed under it. Each merged
layer is compared with the adapted one on a probe input, and so is the whole model, through its own path, where its inputs are known: a
layer may be used otherwise than by calling it. The differences are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import adapter as swap
from adaptome.core import packed
from adaptome.core.adapter import Adapted, WeightAdapter, check_mergeable, check_replaced
from adaptome.core.errors import MergeError
from adaptome.core.hosts import Host, host_of
from adaptome.core.merge_report import MergeReport as MergeReport
from adaptome.core.merge_report import Requantised
from adaptome.core.state import (
    STATE,
    State,
    attachment_of,
    find_root,
    forget,
    is_ours,
    rearrange,
    refuse_sharded,
    run_only,
)
from adaptome.core.whole import difference, outputs_of, outputs_or_none, probe, probe_of

#: a layer, its parameters, and those of them that were there before any merge
Before = tuple[Any, dict[str, Any], dict[str, Any]]

#: relative difference on the probe above which a merge is refused, by the precision of the stored weight
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}

#: the merged weights must be this much nearer, after requantising, to what was meant than the base was
LOST = 0.9


def merge(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    keep: bool = True,
    requantise: bool = False,
    tolerance: float | None = None,
    inputs: Any = None,
) -> MergeReport:
    """Write adapters into the weights.

    Args:
        model: with adapters.
        names: which; None for all that are active.
        keep: keep the adapters and the old weights, so that `unmerge` is exact; False frees them: the model is then a plain one.
        requantise: allow packed weights to be dequantised, merged and quantised again, which changes the outputs
            a little more; the error is told. Without it they are refused. Changes smaller than a quantisation
            step get lost: a merge that would bring the weights no nearer to what is meant is refused too.
        tolerance: largest relative difference on the probe; None for a bound by precision (requantised layers have none, and
            with a tolerance given any loss of the adapters' change is accepted).
        inputs: of the probe of the whole model: its keyword arguments, or its one argument. None: made up where the kind of model is
            known; False: the layers alone are compared.

    Raises:
        MergeError: an adapter has no merged form, one that stays comes before one that merges (unless both only add), the result is not finite or
            differs by more than the tolerance, a packed weight without `requantise`, or a change that requantising loses. The model is then as it was.
        StateError: unknown name.
    """
    root = find_root(model)
    refuse_sharded(root, "merging")
    state: State = root.__dict__[STATE]
    wanted = [names] if isinstance(names, str) else list(state.active if names is None else names)
    already = [n for n in wanted if attachment_of(root, n).merged]
    wanted = _to_merge(state, wanted, already, keep)
    layers = _layers(root, state, wanted)
    before: list[Before] = []
    report: dict[str, tuple[float | None, Requantised | None]] = {}
    probe = probe_of(root) if inputs is None else None if inputs is False else inputs
    run = outputs_or_none if inputs is None else outputs_of
    with evaluating(root), ExitStack() as undo:
        undo.callback(_put_all_back, root, before)  # whatever stops us, Ctrl-C included
        run_only(root, wanted)
        meant = run(root, probe) if probe is not None else None
        for path, layer, stack in layers:
            before.append((layer, dict(layer._parameters), dict(layer.__dict__.get("_unmerged", {}))))
            report[path] = _merge_layer(path, layer, stack, state, wanted, requantise, tolerance)
        again = {path: made for path, (_, made) in report.items() if made is not None}
        if tolerance is None:
            _check_lost(again)
        whole = None
        if meant is not None:
            run_only(root, [])
            whole = difference(meant, outputs_of(root, probe))
            _check_whole(whole, tolerance, layers, bool(again))
        undo.pop_all()  # merged
    for name in wanted:
        state.attachments[name].merged = True
    untied, created = _untie(root), _created(before)
    rearrange(root)
    if not keep:
        for module in root.modules():
            module.__dict__.pop("_unmerged", None)
        root.__dict__.pop("_tied_before", None)
        forget(root, [*already, *wanted])
    return MergeReport(
        tuple(wanted),
        {p: d for p, (d, _) in report.items()},
        {p: made.error for p, made in again.items()},
        untied,
        {p: made.lost for p, made in again.items()},
        created,
        whole,
    )


def _to_merge(state: State, wanted: list[str], already: list[str], keep: bool) -> list[str]:
    """The names that are left to merge, active ones first and in their order."""
    wanted = [n for n in wanted if n not in already]
    if not keep:
        _check_none_stays(state, [*already, *wanted])
    if not wanted and (keep or not already):
        raise MergeError(
            f"nothing to merge: active are {state.active}, merged already {[n for n, a in state.attachments.items() if a.merged]}."
        )
    return [n for n in state.active if n in wanted] + [n for n in wanted if n not in state.active]


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the time of the block, told to nobody."""
    training = [m for m in root.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _put_all_back(root: nn.Module, before: list[Before]) -> None:
    for layer, parameters, unmerged in before:
        for parameter, value in parameters.items():
            if value is not layer._parameters[parameter]:
                packed.install(layer, value, parameter)
        layer.__dict__.pop("_unmerged", None)
        if unmerged:
            layer.__dict__["_unmerged"] = unmerged
    rearrange(root)


def _created(before: list[Before]) -> tuple[str, ...]:
    """Names of the parameters that were not there before the merge."""
    return tuple(
        ".".join(part for part in (layer._host.path, name) if part)
        for layer, parameters, _ in before
        for name, value in parameters.items()
        if value is None and layer._parameters[name] is not None
    )


def _check_lost(again: dict[str, Requantised]) -> None:
    missed, meant = sum(made.missed for made in again.values()), sum(made.meant for made in again.values())
    if meant and missed >= LOST**2 * meant:
        raise MergeError(
            f"quantising the merged weights again would lose the adapters: it leaves {(missed / meant) ** 0.5:.0%} of their change, which is smaller than the quantisation steps.\n"
            "  Merge into the full-precision base, or keep the adapter attached; tolerance=float('inf') merges all the same."
        )


def _check_whole(
    found: float,
    tolerance: float | None,
    layers: list[tuple[str, Any, list[WeightAdapter]]],
    requantised: bool,
) -> None:
    """Raise MergeError when the model's output has changed by more than the roundings of so many layers add up to."""
    bounds = [TOLERANCE.get(host_of(layer, path).dtype, 6e-2) for path, layer, _ in layers]
    bound = max(bounds) * len(layers) ** 0.5 if tolerance is None else tolerance
    if not (found <= bound or (requantised and tolerance is None)):
        raise MergeError(
            f"the merged model differs from the adapted one by {found:.2e} on a probe, above {bound:.0e}, though each of its layers is what it was.\n"
            "  Some of them are used otherwise than by calling them, so that their adapters do not run. Leave these out, or keep the adapter\n"
            "  attached; a tolerance accepts the difference, inputs={...} takes a probe of yours, and inputs=False compares the layers alone."
        )


def _check_none_stays(state: State, going: list[str]) -> None:
    stays = [n for n, a in state.attachments.items() if a.merged and n not in going]
    if stays:
        raise MergeError(
            f"keep=False frees the old weights, which {stays} need to be unmerged.\n  Name them too, or ad.unmerge(model) first."
        )


def unmerge(model: nn.Module) -> None:
    """Take every merge back: the old parameter objects return, with their bits.

    Raises:
        MergeError: nothing is merged.
    """
    root = find_root(model)
    state: State = root.__dict__[STATE]
    merged = [a for a in state.attachments.values() if a.merged]
    if not merged:
        raise MergeError(f"nothing is merged; attached are {list(state.attachments)}.")
    for module in root.modules():
        if isinstance(module, Adapted):
            _put_back(module)
    for attachment in merged:
        attachment.merged = False
    tied = root.__dict__.pop("_tied_before", None)
    if tied is not None:
        config: Any = root.config
        config.tie_word_embeddings = tied
    rearrange(root)


def stacks(
    root: nn.Module, names: str | Sequence[str] | None = None
) -> tuple[list[str], list[tuple[str, Any, list[WeightAdapter]]]]:
    """The adapters that merging these names (None: all active) means, in order, and every layer with what changes it; nothing is touched.

    Raises:
        MergeError: an adapter has no merged form, or one that stays comes before one that merges.
        StateError: unknown name.
    """
    state: State = root.__dict__[STATE]
    wanted = [names] if isinstance(names, str) else list(state.active if names is None else names)
    already = [n for n in wanted if attachment_of(root, n).merged]
    ordered = (
        _to_merge(state, wanted, already, keep=True) if set(wanted) != set(already) or not wanted else []
    )
    return [*already, *ordered], _layers(root, state, ordered)


def _layers(root: nn.Module, state: State, wanted: list[str]) -> list[tuple[str, Any, list[WeightAdapter]]]:
    """Every layer with something to merge, and its adapters in order; all checked before anything is touched."""
    found = []
    for path, layer in root.named_modules():
        if not isinstance(layer, Adapted):
            continue
        stack = [
            check_mergeable(a, state.attachments[n].method.name)
            for n in wanted
            for a in swap.adapters_on(layer, n)
        ]
        if not stack:
            continue
        _check_order(path, layer, state, wanted)
        found.append((path, layer, stack))
    return found


def _check_order(path: str, layer: Any, state: State, wanted: list[str]) -> None:
    """Raise MergeError when a weight adapter that stays runs before one that merges, unless both only add."""
    stay: list[tuple[str, bool]] = []
    for name in state.active:
        weights = [a for a in swap.adapters_on(layer, name) if isinstance(a, WeightAdapter)]
        adds = all(a.additive for a in weights)
        if not weights or state.attachments[name].merged:
            continue
        if name not in wanted:
            stay.append((name, adds))
            continue
        first = next((n for n, also in stay if not (adds and also)), None)
        if first is not None:
            raise MergeError(
                f"{first!r} acts on {path} before {name!r}: merging only the later one would change the outputs.\n  Merge {first!r} too, or activate them in the other order."
            )


def _merge_layer(
    path: str,
    layer: Any,
    stack: list[WeightAdapter],
    state: State,
    wanted: list[str],
    requantise: bool,
    tolerance: float | None,
) -> tuple[float | None, Requantised | None]:
    host: Host = host_of(layer, path)
    if any(p.device.type == "meta" for p in layer._parameters.values() if p is not None):
        raise MergeError(
            f"{path}: its weights are offloaded or on the meta device; load the model fully to merge."
        )
    if host.packed and not requantise and any(host.parameter in a.changes for a in stack):
        raise MergeError(
            f"{path} is quantised ({type(layer._base).__name__}): merging means dequantising, adding and quantising again, which changes the outputs.\n"
            "  Pass requantise=True to do that and be told the error, merge into the full-precision base, or keep the adapter attached."
        )
    x = probe(host)
    swap.arrange(layer, wanted)
    before = _run(layer, x)
    swap.arrange(layer, [])
    error: Requantised | None = None
    created = {p for a in stack for p in a.creates}
    for parameter in dict.fromkeys(p for a in stack for p in a.changes if host.has(p) or p in created):
        adapters = [a for a in stack if parameter in a.changes]
        made = _write(layer, host, parameter, adapters, path)
        error = made if made is not None else error
    if before is None:
        return None, error
    after = _run(layer, x)
    difference = float(
        (after.double() - before.double()).abs().max() / before.double().abs().max().clamp_min(1e-12)
    )
    bound = (
        tolerance
        if tolerance is not None
        else (float("inf") if error is not None else TOLERANCE.get(host.dtype, 6e-2))
    )
    if not difference <= bound:
        raise MergeError(
            f"{path}: the merged layer differs from the adapted one by {difference:.2e} on a probe, above {bound:.0e}.\n  Pass a tolerance to accept it."
        )
    return difference, error


@torch.no_grad()
def _run(layer: Any, probe: Tensor | None) -> Any:
    return None if probe is None else layer(probe)


@torch.no_grad()
def _write(
    layer: Any, host: Host, parameter: str, adapters: list[WeightAdapter], path: str
) -> Requantised | None:
    """Replace one parameter by its merged value; the old object is remembered. Tells what requantising a packed one did."""
    old = layer._parameters[parameter]
    is_packed = host.packed and parameter == host.parameter
    was: Tensor = (
        host.native(host.current_weight()) if is_packed else host.stored_or_zeros(parameter).detach()
    )
    value = was
    check_replaced(parameter, tuple(adapters))
    for adapter in adapters:
        value = adapter.apply_to(parameter, value)
    # one sum reads the weight once; what is finite may overflow in it, so the entries decide
    if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        raise MergeError(
            f"{path}.{parameter}: the merged value is not finite; the adapter holds NaN or infinity."
        )
    layer.__dict__.setdefault("_unmerged", {}).setdefault(parameter, old)
    if is_packed:
        packed.install(layer, packed.repack(layer, value, parameter), parameter)
        missed = (packed.dense(layer, parameter) - value).square().sum()
        error = packed.requantisation_error(layer, value, parameter)
        return Requantised(error, float(missed), float((value - was).square().sum()))
    layer._parameters[parameter] = nn.Parameter(value.to(was.dtype).contiguous(), requires_grad=False)
    return None


def _put_back(layer: Any) -> None:
    for parameter, old in layer.__dict__.pop("_unmerged", {}).items():
        packed.install(layer, old, parameter)


def _untie(root: Any) -> tuple[str, ...]:
    """Merged layers whose weight was tied and differs now: said, and the config told not to tie them again.

    Tied weights that were merged to the same values are tied again.
    """
    places: dict[int, list[tuple[str, Any, str]]] = {}
    for path, module in root.named_modules():
        for name, value in module._parameters.items():
            old = module.__dict__.get("_unmerged", {}).get(name, value)
            if old is not None and not is_ours(path):
                places.setdefault(id(old), []).append((path, module, name))
    untied: list[str] = []
    for tied in places.values():
        first = tied[0][1]._parameters[tied[0][2]]
        if all(m._parameters[n] is first for _, m, n in tied):
            continue
        if all(torch.equal(m._parameters[n], first) for _, m, n in tied):
            for _, module, name in tied:
                module._parameters[name] = first
        else:
            untied += [path for path, m, n in tied if n in m.__dict__.get("_unmerged", {})]
    config: Any = getattr(root, "config", None)
    if untied and getattr(config, "tie_word_embeddings", False):
        root.__dict__["_tied_before"] = config.tie_word_embeddings
        config.tie_word_embeddings = False
    return tuple(untied)
