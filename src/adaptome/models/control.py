"""A ControlNet on a diffusion transformer: copies of its first blocks read a condition, and what they find is added to the blocks' own outputs.

    c_0 = h_0 + E(condition),    c_i = copy_i(c_{i-1}),    h_i = block_i(h_{i-1}) + Z_i c_i        for the first n blocks

    h [B, N, D], Z [D, D] zero at the start, so that the controlled model begins as the model; E the model's own patch embedding,
    without positions (h_0 has them). The copies see the same time and text as the blocks they stand beside.

PixArt's way: Chen et al. 2024, arXiv:2401.05252, "ControlNet-Transformer"; after Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptome.core.errors import ModelError, TornFileError
from adaptome.core.steer import steered_again

#: where a pipeline's folder has it
FOLDER, CONFIG, WEIGHTS = "control", "config.json", "model.safetensors"


class Control(nn.Module):
    """Copies of blocks, and the layers by which they act.

    Args:
        blocks: to copy; their weights at this time.
        width: D.
    """

    def __init__(self, blocks: Sequence[nn.Module], width: int):
        super().__init__()
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in blocks)
        like = next(self.blocks.parameters())
        self.out = nn.ModuleList(nn.Linear(width, width, device=like.device, dtype=like.dtype) for _ in blocks)  # fmt: skip
        for layer in self.out:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        #: compute the copies again in the backward instead of keeping what they saw
        self.recompute = False

    @classmethod
    def on(cls, denoiser: Any, depth: int) -> Control:
        """That of a denoiser, from its first `depth` blocks.

        Raises:
            ModelError: a denoiser that has no such blocks, or fewer.
        """
        blocks: Any = getattr(denoiser, "transformer_blocks", None)
        embedding: Any = getattr(denoiser, "pos_embed", None)
        if (
            blocks is None
            or not hasattr(embedding, "proj")
            or "PixArtTransformer2DModel" not in _kinds(denoiser)
        ):
            raise ModelError(
                f"control is for diffusion transformers whose blocks have one stream (PixArtTransformer2DModel); this is a {type(denoiser).__name__}."
            )
        if not 1 <= depth <= len(blocks):
            raise ModelError(f"control of {depth} blocks: the model has {len(blocks)}; give 1 to {len(blocks)}.")  # fmt: skip
        return cls(list(blocks[:depth]), int(embedding.proj.out_channels))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        """What is added to each block's output, from c_0 [B, N, D] and what the blocks are given beside it."""
        found = []
        for block, out in zip(self.blocks, self.out, strict=True):
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(
                    block, hidden, *args, use_reentrant=False, context_fn=steered_again, **kwargs
                )
            else:
                hidden = block(hidden, *args, **kwargs)
            found.append(out(hidden))
        return found

    @contextmanager
    def acting(self, denoiser: Any, condition: Tensor) -> Iterator[None]:
        """Within it the denoiser is controlled.

        Args:
            condition: latents [B, C, h, w], of the noisy latents' shape.
        """
        added: list[Tensor] = []

        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(kwargs)
            hidden = args[0] if args else given.pop("hidden_states")
            begun = hidden + denoiser.pos_embed.proj(condition.to(hidden.dtype)).flatten(2).mT
            added[:] = self(begun, *args[1:], **given)

        def after(number: int) -> Any:
            return lambda block, args, output: output + added[number]

        controlled = denoiser.transformer_blocks[: len(self.blocks)]
        hooks = [controlled[0].register_forward_pre_hook(before, with_kwargs=True)]
        hooks += [block.register_forward_hook(after(i)) for i, block in enumerate(controlled)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    # -- folders -----------------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Weights and depth."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, str(folder / WEIGHTS))
        (folder / CONFIG).write_text(json.dumps({"blocks": len(self.blocks)}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, denoiser: Any) -> Control:
        """What `write` wrote, for this denoiser.

        Raises:
            TornFileError: it does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            made = cls.on(denoiser, int(json.loads((folder / CONFIG).read_text("utf-8"))["blocks"]))
            made.load_state_dict(load_file(str(folder / WEIGHTS)))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise TornFileError(f"{folder} does not hold the control of this model: {error}") from error
        return made


def _kinds(model: Any) -> set[str]:
    return {kind.__name__ for kind in type(model).__mro__}  # an adapted model is of a class made from its own
