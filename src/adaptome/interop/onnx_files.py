"""A model with its adapters as an ONNX file: merged or attached, exported by torch.onnx and compared with the model in ONNX Runtime.

Batch and length stay free. The file is kept only when ONNX Runtime gives what the model gives.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import MergeError, MissingExtraError
from adaptome.core.example_inputs import example_inputs
from adaptome.core.files import sync_folder
from adaptome.core.merging import evaluating, merge, unmerge
from adaptome.core.model import activate, active
from adaptome.core.state import adapters, find_root, refuse_sharded
from adaptome.interop.convert import first_output
from adaptome.interop.merge_reports import MergedFile

#: bytes of a model above which its tensors go to a file of their own: a message of protobuf holds two gigabytes
ALONE = 1.8e9


class _Plain(nn.Module):
    """A model's first output, from named inputs, without a cache."""

    def __init__(self, model: nn.Module, names: Sequence[str], extra: dict[str, Any]):
        super().__init__()
        self.model, self.names, self.extra = model, list(names), extra

    def forward(self, *values: Tensor) -> Tensor:
        return first_output(self.model(**dict(zip(self.names, values, strict=True)), **self.extra))


def export_onnx(
    model: nn.Module,
    file: str | os.PathLike[str],
    inputs: Mapping[str, Tensor] | None = None,
    *,
    merged: bool = True,
    names: str | Sequence[str] | None = None,
    tolerance: float = 1e-3,
) -> MergedFile:
    """Write a model as ONNX, and hold its outputs in ONNX Runtime to the model's.

    Args:
        model: with adapters or without; afterwards it is as it was.
        file: to write, its name ending in .onnx; tensors of a model above 1.8 GB go to a file beside it.
        inputs: by name, as the model takes them; the first dimension is the batch, the second of integers the length, and both stay free.
            None makes them from the configuration, for models of transformers and diffusers.
        merged: the adapters in the weights; False exports them as they run beside the layers.
        names: which adapters; None for all that are active.
        tolerance: largest difference of the outputs, as a share of the largest output.

    Raises:
        MergeError: torch cannot export the model or the adapter, or the outputs differ; nothing is written then.
        MissingExtraError: without the extra `onnx`.
    """
    path, runtime = Path(file), _packages()
    if path.is_dir() or path.suffix.lower() != ".onnx":
        raise MergeError(f"{path}: an ONNX model is one file; give it a name that ends in .onnx.")
    refuse_sharded(model, "exporting")
    chosen = _chosen(model, names)
    if not chosen:
        return _exported(model, path, inputs, [], tolerance, runtime)
    before, put_in = active(model), False
    try:
        activate(model, chosen)
        if merged and not all(adapters(model)[name].merged for name in chosen):
            merge(model)
            put_in = True
        return _exported(model, path, inputs, chosen if merged else [], tolerance, runtime)
    finally:
        if put_in:
            unmerge(model)
        activate(model, before)


def _packages() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnxruntime", "onnx") from error
    return onnxruntime


def _chosen(model: nn.Module, names: str | Sequence[str] | None) -> list[str]:
    if not adapters(model):
        return []
    if names is None:
        return list(active(find_root(model)))
    return [names] if isinstance(names, str) else list(names)


def _exported(
    model: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor] | None,
    names: list[str],
    tolerance: float,
    runtime: Any,
) -> MergedFile:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    trials = [dict(inputs)] if inputs is not None else [_made(model, batch, length, device) for batch, length in ((2, 8), (3, 5))]  # fmt: skip
    cached = "use_cache" in inspect.signature(model.forward).parameters
    plain = _Plain(model, list(trials[0]), {"use_cache": False} if cached else {})
    with evaluating(model), torch.no_grad():
        plain.eval()
        program = _program(plain, trials[0])
        expected = [plain(*trial.values()).float().cpu() for trial in trials]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.writing-") as place:
        staged = Path(place) / path.name
        program.save(str(staged), external_data=size > ALONE)
        error = _error(runtime, staged, trials, expected)
        if not error <= tolerance:
            raise MergeError(
                f"in ONNX Runtime the outputs differ from the model's by {error:.2e}, above {tolerance:.0e}; nothing was written.\n  Raise the tolerance if that is what the precision gives."
            )
        parts = sorted(
            Path(place).iterdir(), key=lambda part: part == staged
        )  # the file that names others last
        written = sum(part.stat().st_size for part in parts)
        for part in parts:
            os.replace(part, path.parent / part.name)
        sync_folder(path.parent)
    count = len(program.model.graph.initializers)
    return MergedFile(str(path), "onnx", tuple(names), count, written, {}, error)


def _made(model: nn.Module, batch: int, length: int, device: torch.device) -> dict[str, Tensor]:
    made = example_inputs(model, batch, length, device=device, seed=batch)
    return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "labels"}


def _program(plain: _Plain, inputs: Mapping[str, Tensor]) -> Any:
    auto = torch.export.Dim.DYNAMIC
    shapes = tuple(
        dict.fromkeys(range(min(value.dim(), 1 if value.is_floating_point() else 2)), auto) for value in inputs.values()
    )  # fmt: skip
    try:
        return torch.onnx.export(
            plain, tuple(inputs.values()), dynamo=True, input_names=list(inputs), output_names=["output"], dynamic_shapes=(shapes,), verbose=False
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise MergeError(
            f"torch cannot export {type(plain.model).__name__} to ONNX: {_first_line(cause)}\n  Merge first (merged=True), or serve it with torch."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _error(
    runtime: Any, file: Path, trials: Sequence[Mapping[str, Tensor]], expected: Sequence[Tensor]
) -> float:
    """The largest difference of the outputs in ONNX Runtime."""
    state = runtime.capi.onnxruntime_pybind11_state
    refusals = (
        state.Fail,
        state.NotImplemented,
        state.InvalidGraph,
        state.InvalidArgument,
        state.RuntimeException,
    )
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return max(_difference(session, trial, y) for trial, y in zip(trials, expected, strict=True))
    except refusals as error:
        raise MergeError(
            f"ONNX Runtime does not run the model: {_first_line(error)}\n  Nothing was written."
        ) from error


def _difference(session: Any, inputs: Mapping[str, Tensor], expected: Tensor) -> float:
    taken = {entry.name for entry in session.get_inputs()}  # what the graph does not use is not among them
    (found,) = session.run(None, {k: v.cpu().numpy() for k, v in inputs.items() if k in taken})
    gap = (torch.from_numpy(found).float() - expected).abs().max()
    return float(gap / expected.abs().max().clamp_min(1e-12))
