"""Folders that GPTQ and AWQ tools wrote, and writing such a folder.

`from_pretrained` reads them through transformers' own loader where GPTQModel is installed. Where it is not, ours takes its place: pure torch, on every
device, into layers of our format, with the same weights to the bit.

    model = ad.load_quantized("TheBloke/some-model-GPTQ")     # quant_method gptq or awq
    print(ad.save_gptq(model, "model-gptq"))                  # of a model that ad.quantize or ad.pack made
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError, StateError
from adaptome.core.files import atomic_folder
from adaptome.core.hosts import host_of
from adaptome.core.state import STATE
from adaptome.quantization.formats import Uniform
from adaptome.quantization.layers import PackedLinear
from adaptome.quantization.stored import Rows, from_awq, from_gptq, to_gptq
from adaptome.quantization.words import WORD

KINDS = ("gptq", "awq")
#: names of version 2 of the zero points, in `quantization_config.checkpoint_format` (`format` in newer files)
VERSIONS = {"gptq": 1, "gptq_v2": 2}


class StoredLinear(nn.Module):
    """The tensors of one layer of such a file, until they are all there.

    Args:
        fan_in, fan_out: of the layer.
        names: of its tensors in the file, `qweight`, `qzeros`, `scales` and perhaps `g_idx` and `bias`.
        config: the file's quantisation settings.
        dtype: of the bias.
    """

    def __init__(self, fan_in: int, fan_out: int, names: Iterable[str], config: Any, dtype: torch.dtype):
        super().__init__()
        self.fan_in, self.fan_out, self.config = fan_in, fan_out, config
        bits, group = config.bits, config.group_size
        groups = 1 if group < 1 else -(-fan_in // group)
        wide = fan_out * bits // WORD
        shapes = {
            "qweight": (fan_in * bits // WORD, fan_out) if config.quant_method == "gptq" else (fan_in, wide),
            "qzeros": (groups, wide),
            "scales": (groups, fan_out),
            "g_idx": (fan_in,),
            "bias": (fan_out,),
        }
        kinds = {
            "scales": torch.float32,
            "bias": dtype,
        }  # float32, so that no scale is rounded to the model's type
        for name in names:
            if name not in shapes:
                raise ModelError(
                    f"a {config.quant_method} layer holds no {name!r}; it holds {', '.join(shapes)}."
                )
            made = torch.empty(shapes[name], dtype=kinds.get(name, torch.int32), device="meta")
            self.register_buffer(name, made)

    def packed(self) -> PackedLinear:
        """The layer of our format with these weights."""
        t: dict[str, Any] = {
            name: self._buffers.get(name) for name in ("qweight", "qzeros", "scales", "g_idx", "bias")
        }
        settings = self.config.bits, self.config.group_size
        if self.config.quant_method == "awq":
            rows = from_awq(t["qweight"], t["qzeros"], t["scales"], *settings)
        else:
            rows = from_gptq(
                t["qweight"], t["qzeros"], t["scales"], t["g_idx"], *settings, version_of(self.config)
            )
        return layer_of(rows, self.fan_in, t["bias"])


def layer_of(rows: Rows, fan_in: int, bias: Tensor | None) -> PackedLinear:
    """A frozen layer in evaluation mode with these bytes."""
    data = rows.data
    dtype = None if bias is None else bias.dtype
    ordered = rows.order is not None
    made = PackedLinear(fan_in, len(data), bias is not None, rows.form, data.device, dtype, ordered=ordered)
    made.weight.data = data
    if rows.order is not None:
        made.order = rows.order
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made.eval()


def version_of(config: Any) -> int:
    """The version of a GPTQ file's zero points.

    Raises:
        ModelError: another format under the same name (marlin, bitblas, ...).
    """
    name = str(
        getattr(config, "format", None) or getattr(config, "checkpoint_format", None) or "gptq"
    ).lower()
    if name not in VERSIONS:
        raise ModelError(
            f"quantization_config.format={name!r}: codes in the order of one kernel. Read are {' and '.join(VERSIONS)}.\n  Take the model's gptq folder."
        )
    return VERSIONS[name]


def _check(config: Any) -> None:
    """Raise ModelError for what the files of this configuration hold and is not read here."""
    if config.quant_method == "gptq":
        version_of(config)
        return
    version = getattr(config, "version", None) or getattr(config, "format", None) or "gemm"
    version = str(getattr(version, "value", version)).lower()
    if version != "gemm":
        raise ModelError(
            f"AWQ files of version {version!r} are not read here; gemm's are.\n  Take the model's gemm folder."
        )


@functools.cache
def register(describe: Callable[[Any], None]) -> None:
    """Let transformers read GPTQ's and AWQ's folders where GPTQModel, which its own loaders need, is not installed.

    Args:
        describe: tells a loaded model's configuration how its layers are packed.
    """
    if importlib.util.find_spec("gptqmodel") is not None:
        return
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    class StoredQuantizer(HfQuantizer):
        """Puts empty layers in place of those that the files hold quantised, and ours once they are filled."""

        requires_calibration = True  # it reads what is quantised; it quantises nothing

        def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
            _check(self.quantization_config)
            _prepare(model, kwargs.get("checkpoint_files") or (), self.quantization_config)

        def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
            _finish(model)
            describe(model)
            return model

        def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

    for kind in KINDS:
        AUTO_QUANTIZER_MAPPING[kind] = StoredQuantizer


def _prepare(model: Any, files: Iterable[str], config: Any) -> None:
    for path, names in _stored_layers(files).items():
        own = _own_path(model, path)
        old = model.get_submodule(own)
        host = host_of(old, own)
        if host.kind != "linear":
            raise ModelError(
                f"the file's quantised layer {path!r} is a {type(old).__name__} here, no linear layer."
            )
        made = StoredLinear(host.fan_in, host.fan_out, names, config, host.dtype)
        model.set_submodule(own, made)


def _stored_layers(files: Iterable[str]) -> dict[str, list[str]]:
    """Path of each quantised layer -> names of its tensors."""
    from safetensors import safe_open

    found: dict[str, list[str]] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise ModelError(
                f"{file}: only safetensors files are read.\n  Convert the folder to safetensors."
            )
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  # no mapping
                path, _, name = key.rpartition(".")
                found.setdefault(path, []).append(name)
    return {path: names for path, names in found.items() if "qweight" in names}


def _own_path(model: Any, path: str) -> str:
    """The path that the model calls it by: with or without the prefix of its base."""
    prefix = f"{model.base_model_prefix}."
    for own in (path, path.removeprefix(prefix), prefix + path):
        try:
            model.get_submodule(own)
        except AttributeError:
            continue
        return own
    raise ModelError(
        f"the file's quantised layer {path!r} has no place in {type(model).__name__}.\n"
        "  Load it as the model that was quantised; experts that the model keeps in one parameter cannot be read from it."
    )


def _finish(model: Any) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, StoredLinear):
            missing = [name for name, value in module._buffers.items() if value is not None and value.is_meta]
            if missing:
                raise ModelError(
                    f"{path}: {', '.join(missing)} did not come with the files, or was put off to the disk."
                )
            model.set_submodule(path, module.packed())


# -- writing ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GPTQFolder:
    """What `save_gptq` wrote.

    Attributes:
        folder: where. version: of the zero points, 1 (`gptq`) or 2 (`gptq_v2`).
        errors: relative Frobenius distance of each written weight from the model's, by layer; 0 where nothing was rounded.
    """

    folder: Path
    version: int
    errors: dict[str, float]

    def __str__(self) -> str:
        name = next(k for k, v in VERSIONS.items() if v == self.version)
        worst = max(self.errors.values())
        told = "to the bit" if worst == 0 else f"rounded by at most {worst:.1e}"
        return f"{len(self.errors)} layers as {name} in {self.folder}, {told}"


def save_gptq(
    model: Any, folder: str | Path, version: int | None = None, tolerance: float = 1e-3
) -> GPTQFolder:
    """Write a quantised model as a GPTQ folder, which vLLM, GPTQModel, ExLlama and transformers read.

    Args:
        model: of transformers, its layers in our uniform format (schemes 'uniform' and 'gptq', and what `ad.pack` leaves of L4Q), no adapters on it.
        folder: a new one.
        version: of the zero points; None for 1, or 2 where the weights need it.
        tolerance: what rounding scales to half precision, and offsets to whole steps, may change of a weight, relative to it.

    Raises:
        StateError: adapters are attached, or the folder is not empty.
        ModelError: a layer has no GPTQ form, layers differ in bits or group, or rounding changes one by more than the tolerance.
    """
    from huggingface_hub import save_torch_state_dict

    target = Path(folder)
    layers = _layers(model)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StateError(f"{target} is there and not empty.\n  Name a new folder.")
    if version is None:
        version = max(_written(name, layer, None)[1] for name, layer in layers.items())
    tensors = {k: v for k, v in model.state_dict().items() if k.rpartition(".")[0] not in layers}
    errors = {}
    for name, layer in layers.items():
        made, _ = _written(name, layer, version)
        errors[name] = _error(layer, made, version)
        if errors[name] > tolerance:
            raise ModelError(
                f"{name}: as GPTQ its weight would differ by {errors[name]:.1e}, above {tolerance:.0e}: it has offsets between the steps, or scales beyond half "
                "precision.\n  Train l4q with train_bias=False, quantise with zero='integer', or give a larger tolerance."
            )
        tensors |= {f"{name}.{k}": v for k, v in made.items()}
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias.detach()
    config = copy.deepcopy(model.config)
    config.quantization_config = _config(model, layers, version)
    with atomic_folder(target) as partial:
        save_torch_state_dict(tensors, str(partial))
        config.save_pretrained(partial)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(partial)
    return GPTQFolder(target, version, errors)


def _layers(model: Any) -> dict[str, PackedLinear]:
    if STATE in model.__dict__:
        raise StateError(
            "adapters are attached.\n  Merge them (ad.merge), or end l4q by ad.pack, then write."
        )
    found = {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    if not found:
        raise ModelError("no layer is in adaptome's format.\n  ad.quantize(model, 'gptq', ...) makes them.")
    kinds = {(m.form.bits, getattr(m.form, "group", None)) for m in found.values()}
    if odd := [name for name, m in found.items() if not isinstance(m.form, Uniform)]:
        raise ModelError(
            f"{odd[0]} is a sketch, whose values have no equal steps: GPTQ cannot hold them.\n  Quantise with 'uniform' or 'gptq'."
        )
    if len(kinds) > 1:
        raise ModelError(f"layers differ in bits and group, {sorted(kinds)}; a GPTQ folder has one of each.")
    return found


def _rows(layer: PackedLinear) -> Rows:
    assert isinstance(layer.form, Uniform)
    return Rows(layer.form, layer.weight.detach(), layer.order)


def _written(name: str, layer: PackedLinear, version: int | None) -> tuple[dict[str, Tensor], int]:
    try:
        return to_gptq(_rows(layer), layer.in_features, version)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def _error(layer: PackedLinear, made: dict[str, Tensor], version: int) -> float:
    """How far what was written is from the layer's weight."""
    own = _rows(layer)
    settings = own.form.bits, own.form.group, version
    read = from_gptq(made["qweight"], made["qzeros"], made["scales"], made["g_idx"], *settings)
    W = own.weight(layer.in_features)
    return float((read.weight(layer.in_features) - W).norm() / W.norm().clamp_min(1e-30))


def _config(model: Any, layers: dict[str, PackedLinear], version: int) -> dict[str, Any]:
    form: Any = next(iter(layers.values())).form
    name = next(k for k, v in VERSIONS.items() if v == version)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    plain = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers and m is not head
    ]
    return {
        "quant_method": "gptq", "bits": form.bits, "group_size": form.group, "format": name, "checkpoint_format": name,
        "desc_act": any(m.order is not None for m in layers.values()),
        "sym": all(getattr(m.form, "zero", None) == "none" for m in layers.values()),
        "lm_head": head in layers.values(),
        **({"dynamic": {f"-:^{n}$": {} for n in plain}} if plain else {}),
    }  # fmt: skip
