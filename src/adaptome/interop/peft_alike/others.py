"""PEFT's types of other kinds that are ours under other names: spectra, mirrors, entries, shifts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.errors import FormatError, KeyMismatchError, MergeError
from adaptome.core.state import Attachment
from adaptome.interop.peft_alike.base import STARTS, Alike, Setting
from adaptome.interop.peft_types import Parts


class BEFTType(Alike):
    """beta `[1, out]`, which our SSF has without its scales."""

    type, method = "BEFT", "ssf"
    keys: ClassVar = {"beta": "beft_bias"}
    known = STARTS

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"scale": False}

    def asked(self, config: dict[str, Any]) -> dict[str, Any]:
        return self.once(config)

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {"beta": parts["beta"].flatten()}

    def theirs(self, adapter: Any) -> Parts:
        if adapter.g is not None or adapter.beta is None:
            raise MergeError(
                f"{adapter.host.name}: PEFT's BEFT has shifts alone, no scales.\n  Merge into the model instead, or attach ssf with scale=False."
            )
        return {"beta": adapter.beta.detach().cpu().clone()[None]}


class C3AType(Alike):
    """w `[out / b, in / b, b]`."""

    type, method = "C3A", "c3a"
    keys: ClassVar = {"w": "c3a_kernel"}
    dimensions: ClassVar = {"w": 3}
    known = STARTS | {"block_size", "block_size_pattern"}
    both: ClassVar = {"size": Setting("block_size", 256)}
    size, pattern = ("size", "w", 2), "block_size_pattern"

    def config(self, attachment: Attachment) -> dict[str, Any]:
        blocks = {path: int(a.b) for path, a in attachment.adapters.items()}  # type: ignore[arg-type]
        first = next(iter(blocks.values()))
        by_layer = {} if set(blocks.values()) == {first} else {self.pattern: blocks}
        return {"peft_type": self.type, "init_weights": True, "block_size": first, **by_layer}


class DEFTType(Alike):
    """P and R; PEFT's alpha / r is our scale."""

    type, method = "DEFT", "deft"
    keys: ClassVar = {"P": "deft_P", "R": "deft_R"}
    dimensions: ClassVar = {"P": 2, "R": 2}
    optional = ("R",)
    known = STARTS | {"alpha", "decomposition_method", "deft_dropout", "init_scale", "para"}
    both: ClassVar = {
        "r": Setting("r", 8), "projection": Setting("decomposition_method", "relu"), "dropout": Setting("deft_dropout", 0.0),
        "fill": Setting("para", False, ((True, False), (False, True))),
    }  # fmt: skip
    size = ("r", "P", 1)

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return super().once(config) | self._scale(config)

    def asked(self, config: dict[str, Any]) -> dict[str, Any]:
        return super().asked(config) | self._scale(config)

    def _scale(self, config: dict[str, Any]) -> dict[str, Any]:
        alpha, r = config.get("alpha"), config.get("r", 8)
        return {"scale": 1.0 if alpha is None else alpha / r}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        method: Any = attachment.method
        return super().config(attachment) | {"alpha": None if method.scale == 1 else method.scale * method.r}


class HRAType(Alike):
    """U `[in, r]`."""

    type, method = "HRA", "hra"
    keys: ClassVar = {"U": "hra_u"}
    dimensions: ClassVar = {"U": 2}
    known = STARTS | {"apply_GS"}
    both: ClassVar = {"r": Setting("r", 8), "gram_schmidt": Setting("apply_GS", False)}
    size = ("r", "U", 1)

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        if parts["U"].shape[1] % 2 and not config.get("apply_GS"):
            raise FormatError(
                f"{path}: an odd number of reflections never was the base model, and is not here.\n  Merge it with PEFT instead."
            )
        return super().settings(config, path, parts)


class RoADType(Alike):
    """Angles and stretches."""

    type, method = "ROAD", "road"
    keys: ClassVar = {"t": "road_theta", "a": "road_alpha"}
    known = STARTS | {"group_size", "variant"}
    both: ClassVar = {
        "size": Setting("group_size", 64), "variant": Setting("variant", "road_1", tuple((k, f"road_{k}") for k in (1, 2, 4))),
    }  # fmt: skip


class SHiRAType(Alike):
    """Values, and where they are as rows and columns `[2, n]`."""

    type, method = "SHIRA", "shira"
    keys: ClassVar = {"values": "shira_weight", "index": "shira_indices"}
    known = STARTS | {"mask_type", "random_seed"}
    both: ClassVar = {"r": Setting("r", 32)}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        places, width = parts["index"].long(), getattr(layer, "in_features", 0)
        if places.dim() != 2 or len(places) != 2 or (layer is not None and not _inside(places, layer)):
            raise KeyMismatchError(
                f"shira_indices {list(places.shape)} are not rows and columns of the layer's weight."
            )
        order = (index := places[0] * width + places[1]).argsort()
        return {"values": parts["values"][order], "index": index[order]}

    def theirs(self, adapter: Any) -> Parts:
        index, width = adapter.index.detach().cpu(), adapter.host.fan_in
        places = torch.stack([index // width, index % width]).int()
        return {"values": adapter.values.detach().cpu().clone(), "index": places}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        return super().config(attachment) | {
            "mask_type": "random"
        }  # the places are in the file, however they were chosen


def _inside(places: Tensor, layer: nn.Module) -> bool:
    sides = torch.tensor([[getattr(layer, "out_features", 0)], [getattr(layer, "in_features", 0)]])
    return bool(((places >= 0) & (places < sides)).all())


class WaveFTType(Alike):
    """c, at places drawn from a seed, which both libraries draw alike."""

    type, method = "WAVEFT", "waveft"
    keys: ClassVar = {"c": "waveft_spectrum"}
    known = STARTS | {
        "n_frequency", "n_frequency_pattern", "proportional_parameters", "random_loc_seed", "scaling", "use_idwt", "wavelet_family",
    }  # fmt: skip
    both: ClassVar = {
        "n": Setting("n_frequency", 2592), "alpha": Setting("scaling", 25.0), "position_seed": Setting("random_loc_seed", 777),
        "moments": Setting("wavelet_family", "db1", tuple((k, f"db{k}") for k in range(1, 9))),
    }  # fmt: skip
    size, pattern = ("n", "c", 0), "n_frequency_pattern"

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        if not config.get("use_idwt", True):
            raise FormatError(
                "use_idwt=False trains entries of the weight itself, as `sparse-delta` does; it is not read here.\n  Merge it with PEFT instead."
            )
        return super().once(config)
