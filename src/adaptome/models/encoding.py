"""Texts and pictures as a diffusion model takes them: encoded by its own parts, and kept for as long as these stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.models.base import CompositeModel
from adaptome.models.denoisers import encode_by_pipeline, encode_plainly
from adaptome.models.pipelines import pipeline_of

#: the kind of a model whose texts are encoded by one encoder, of any architecture
PLAIN = "text-to-image"


class Encoding(CompositeModel):
    """What of a text-to-image model encodes. Its parts stand under the pipeline's names; `kind` is the pipeline's class, or PLAIN."""

    kind: str
    force_zeros: bool
    text_length: int
    patch: int
    tokenizers: dict[str, Any]
    _texts: dict[str, dict[str, Tensor]]
    _moments: dict[int, Tensor]

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of texts; kept for each text as long as nothing of the text encoders trains or is adapted."""
        if not self._is_as_it_was("text_encoder"):
            self._texts.clear()
            return self._encoded(texts)
        for text in dict.fromkeys(texts):
            if (
                text not in self._texts
            ):  # alone: in company its last bits would depend on the others, and so on when a run was resumed
                with torch.no_grad():
                    self._texts[text] = {name: value[0] for name, value in self._encoded([text]).items()}
        found = [self._texts[text] for text in texts]
        return {name: torch.stack([one[name] for one in found]).to(self.device) for name in found[0]}

    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.kind == PLAIN:
            encoder = self.get_submodule("text_encoder")
            return encode_plainly(encoder, self.tokenizers["tokenizer"], texts, self.text_length, self.device)
        given = encode_by_pipeline(pipeline_of(self), texts, self.device)
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in given.items()}

    def unconditional(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The condition that guidance leads away from; zeros for an empty text where the pipeline has it so (SDXL)."""
        made = self.encode(texts)
        if not self.force_zeros:
            return made
        kept = torch.tensor([bool(text) for text in texts], device=self.device)
        return {k: v * kept.view(-1, *[1] * (v.dim() - 1)) for k, v in made.items()}

    def _is_as_it_was(self, prefix: str) -> bool:
        """Whether the parts whose names begin so are frozen and have no adapters, so that what they give can be kept."""
        parts = [part for name, part in self.parts().items() if name.startswith(prefix)]
        return not any(
            hasattr(m, "adaptome") or any(p.requires_grad for p in m._parameters.values() if p is not None)
            for part in parts
            for m in part.modules()
        )

    def moments(self, pixels: Tensor, examples: Tensor | None) -> Tensor:
        """Mean and log variance [B, 2 C, h, w] of the latents of pictures in [-1, 1]; kept for each example."""
        vae: Any = self.get_submodule("vae")
        told = [-1] * len(pixels) if examples is None else examples.tolist()
        numbers = [None if number < 0 else int(number) for number in told]
        found = []
        for picture, number in zip(pixels, numbers, strict=True):
            if number is None or number not in self._moments:
                with torch.no_grad():  # alone, as texts are
                    made = vae.encode(picture[None].to(vae.dtype)).latent_dist.parameters[0]
                if number is not None:
                    self._moments[number] = made.cpu()
            else:
                made = self._moments[number].to(pixels.device)
            found.append(made)
        return torch.stack(found)

    def latents(self, pixels: Tensor, draws: Tensor, examples: Tensor | None = None) -> Tensor:
        """Latents [B, C, h, w] of pictures, drawn from the autoencoder's posterior by each example's number; without one the pixels."""
        vae: Any = self._modules.get("vae")
        if vae is None:
            return nn.functional.pixel_unshuffle(pixels, self.patch)
        mean, spread = self.moments(pixels, examples if self._is_as_it_was("vae") else None).chunk(2, 1)
        noise = [
            torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(int(n) ^ 1))
            for n in draws.tolist()
        ]
        found = mean + (spread.clamp(-30, 20) / 2).exp() * torch.stack(noise).to(mean)
        moved = found - (getattr(vae.config, "shift_factor", None) or 0.0)
        return (moved * vae.config.scaling_factor).to(self.dtype)

    def plain_latents(self, pixels: Tensor) -> Tensor:
        """The middle of the autoencoder's posterior, [B, C, h, w]; without an autoencoder the pixels."""
        vae: Any = self._modules.get("vae")
        if vae is None:
            return nn.functional.pixel_unshuffle(pixels, self.patch).to(self.dtype)
        found = vae.encode(pixels.to(vae.dtype)).latent_dist.mean
        return ((found - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor).to(self.dtype)  # fmt: skip

    def instruction(self, texts: Sequence[str]) -> Tensor:
        """What a gate reads of texts: the mean of their tokens' encodings, [D] where all are the same, else [B, D]."""
        given = self.encode(list(dict.fromkeys(texts)))
        hidden = given["hidden"].float()
        mask = given["mask"].to(hidden)[..., None] if "mask" in given else torch.ones_like(hidden[..., :1])
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        found = dict(zip(dict.fromkeys(texts), pooled, strict=True))
        return pooled[0] if len(found) == 1 else torch.stack([found[text] for text in texts])

    def pixels(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of latents, about in [-1, 1]."""
        vae: Any = self._modules.get("vae")
        if vae is None:
            return nn.functional.pixel_shuffle(latents, self.patch)
        moved = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        found: Tensor = vae.decode(moved.to(vae.dtype), return_dict=False)[0]
        return found
