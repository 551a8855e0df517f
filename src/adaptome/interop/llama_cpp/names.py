"""llama.cpp's names for a model's tensors, and how it turns their rows.

Llama's converter stores queries and keys with the rows of a head interleaved, `(0, d/2, 1, d/2 + 1, ...)`, for rotations of neighbouring
pairs where transformers rotates halves. Names are of the `gguf` package's map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptome.core.errors import MergeError, MissingExtraError, nearest


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls an architecture, and what its converter does to it.

    Attributes:
        name: in `general.architecture`.
        permuted: whether queries and keys are turned.
        merged: whether nothing else is changed, so that a whole model can be written here.
    """

    name: str
    permuted: bool = False
    merged: bool = False


#: transformers' model type -> llama.cpp's; those whose linear layers the converter stores as they are, or turned
ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True, merged=True), "mistral": Architecture("llama", permuted=True, merged=True),
    "qwen2": Architecture("qwen2", merged=True), "qwen3": Architecture("qwen3", merged=True), "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2"), "phi3": Architecture("phi3"), "olmo2": Architecture("olmo2"),
}  # fmt: skip


def gguf_package() -> Any:
    """The `gguf` package; MissingExtraError where it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "gguf") from error
    return gguf


def architecture_of(root: nn.Module, what: str) -> Architecture:
    """llama.cpp's architecture of a model.

    Raises:
        MergeError: one whose converter does more than is known here.
    """
    kind = getattr(getattr(root, "config", None), "model_type", None)
    found = ARCHITECTURES.get(str(kind))
    whole = what == "model"
    known = [name for name, a in ARCHITECTURES.items() if a.merged or not whole]
    if found is None or (whole and not found.merged):
        script = (
            "ad.save_merged, and convert_hf_to_gguf.py on its folder"
            if whole
            else "ad.convert, and convert_lora_to_gguf.py on its folder"
        )
        raise MergeError(
            f"a {what} of type {kind!r} is not written as GGUF here; there are {', '.join(known)}.\n  Use {script}, which comes with llama.cpp."
        )
    return found


def tensor_names(root: nn.Module, architecture: Architecture) -> dict[str, str]:
    """Module path -> llama.cpp's name of its weight without the ending, 'blk.0.attn_q'."""
    gguf = gguf_package()
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    table = gguf.get_tensor_name_map(arch, int(root.config.num_hidden_layers))  # type: ignore[union-attr, arg-type]
    found = {}
    for path, module in root.named_modules():
        if any(p is not None for p in module._parameters.values()):
            name = table.get_name(path) or table.get_name(f"model.{path}")
            if name is not None:
                found[path] = name
    return found


def unknown_name(path: str, names: dict[str, str]) -> str:
    """Words for a layer or a tensor that has no counterpart."""
    close = nearest(path, [*names, *names.values()], 1)
    return f" The nearest is {close[0]!r}." if close else ""


def heads_of(root: nn.Module, name: str) -> int | None:
    """How many heads a weight of queries or keys has; None for any other."""
    config: Any = root.config
    if name.endswith("attn_q"):
        return int(config.num_attention_heads)
    if name.endswith("attn_k"):
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return None


def interleave(value: Tensor, heads: int) -> Tensor:
    """Rows `[heads, 2 halves, d / 2]` -> `[heads, d / 2, 2]`, as pairs that are rotated together.

    Args:
        value: `[heads d, *]`.
        heads: how many.
    """
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def halves(value: Tensor, heads: int) -> Tensor:
    """The inverse of `interleave`."""
    return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def turned(root: nn.Module, architecture: Architecture, name: str, value: Tensor) -> Tensor:
    """A weight, bias or second factor as llama.cpp stores it."""
    heads = heads_of(root, name) if architecture.permuted else None
    return value if heads is None else interleave(value, heads).contiguous()
