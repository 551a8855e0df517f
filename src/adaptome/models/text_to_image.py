"""text-to-image: the models of a diffusers pipeline as one, trained on noisy pictures with their texts, and sampled from.

    model: stabilityai/stable-diffusion-xl-base-1.0                       # in a recipe: a pipeline's folder or hub id
    model: {composite: text-to-image, unet: {from_config: {...}}, text_encoder: minilm, scheduler: {...}}

Its parts stand under the pipeline's names for them (`unet` or `transformer`, `vae`, `text_encoder`, `text_encoder_2`, ...), so that adapters have
the names of diffusers' files. Without a `vae` the pixels are what is made noisy. Only safetensors are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError
from adaptome.core.steer import steer
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.denoisers import ENCODERS, denoise, encode_by_pipeline, encode_plainly
from adaptome.models.noising import Process, Times, noisy
from adaptome.models.pipelines import (
    PARTS,
    load_scheduler,
    load_tokenizer,
    loaded_part,
    pipeline_folder,
    pipeline_of,
    read_index,
    write_pipeline,
)

#: the kind of a model whose texts are encoded by one encoder, of any architecture
PLAIN = "text-to-image"


class TextToImageSettings(CompositeSettings):
    pipeline: str | None = Field(
        default=None, description="a pipeline's folder or hub id; then nothing else is needed"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    variant: str | None = Field(default=None, description="of the weights' files, e.g. fp16")
    dtype: str = Field(default="float32", description="of a pipeline's weights")
    kind: str = Field(
        default=PLAIN, description="without a pipeline: the diffusers pipeline whose way with texts is taken"
    )
    unet: Part | None = None
    transformer: Part | None = None
    vae: Part | None = Field(default=None, description="a pipeline's, or another: {name: madebyollin/sdxl-vae-fp16-fix}")  # fmt: skip
    text_encoder: Part | None = None
    text_encoder_2: Part | None = None
    text_encoder_3: Part | None = None
    tokenizer: str | None = Field(default=None, description="default: the text encoder's")
    tokenizer_2: str | None = None
    tokenizer_3: str | None = None
    scheduler: dict[str, Any] = Field(
        default_factory=dict, description="settings of a diffusers scheduler, with _class_name; over a pipeline's own"
    )  # fmt: skip
    text_length: int = Field(default=32, ge=1, description="tokens of a text, where no pipeline says it")
    patch: int = Field(
        default=1,
        ge=1,
        description="without a vae: squares of so many pixels a side are folded into channels",
    )

    @model_validator(mode="after")
    def _whole(self) -> TextToImageSettings:
        if self.pipeline is None and (self.unet is None) == (self.transformer is None):
            raise ValueError("give a pipeline, or one of unet and transformer")
        if self.kind != PLAIN and self.kind not in ENCODERS:
            raise ValueError(f"kind must be {PLAIN} or one of {', '.join(ENCODERS)}")
        return self


@register_model("text-to-image")
class TextToImage(CompositeModel):
    """A denoiser with what surrounds it."""

    Settings = TextToImageSettings

    def __init__(self, settings: CompositeSettings, weights: bool = True):
        nn.Module.__init__(self)
        told: Any = settings
        self.settings: Any = told
        #: what is drawn for training, set by who trains
        self.times, self.offset_noise, self.guidance = Times(), 0.0, 1.0
        self._texts: dict[str, dict[str, Tensor]] = {}
        self._moments: dict[int, Tensor] = {}
        folder = None
        self.kind, self.force_zeros = told.kind, False
        own: dict[str, Any] = dict(told.scheduler)
        self.text_length, self.patch = told.text_length, told.patch
        if told.pipeline is not None:
            folder = pipeline_folder(told.pipeline, told.revision, told.variant)
            index = read_index(folder)
            self.kind, self.force_zeros = (
                index["_class_name"],
                bool(index.get("force_zeros_for_empty_prompt")),
            )
            own_keys = {"text_length": self.text_length, "patch": self.patch} | index.get(PLAIN, {})
            self.text_length, self.patch = int(own_keys["text_length"]), int(own_keys["patch"])
            if self.kind != PLAIN and self.kind not in ENCODERS:
                raise ModelError(
                    f"{folder} is a {self.kind}, which is not trained here. There are {', '.join(ENCODERS)}."
                )
        for name in PARTS:
            part = loaded_part(name, getattr(self.settings, name), folder, weights, self.settings)
            if part is not None:
                self.add_module(name, part)
        self.tokenizers = {
            name: found
            for name in ("tokenizer", "tokenizer_2", "tokenizer_3")
            if (found := load_tokenizer(name, self.settings, folder)) is not None
        }
        self.scheduler = load_scheduler(folder, own)
        self.process = Process(self.scheduler)

    # -- its parts ---------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """The models that are there, by the pipeline's names."""
        return {name: self._modules[name] for name in PARTS if self._modules.get(name) is not None}  # type: ignore[misc]

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self._modules.get("unet") or self._modules["transformer"]

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.denoiser.parameters()).dtype
        return found

    @property
    def predicts(self) -> str:
        """What the denoiser predicts: epsilon, v, sample or flow."""
        return self.process.predicts

    @property
    def shrinks(self) -> int:
        """Pixels that a latent stands for, on a side."""
        vae: Any = self._modules.get("vae")
        return self.patch if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def side(self) -> int:
        """The pictures' own side in pixels."""
        size = self.denoiser.config.sample_size if hasattr(self.denoiser.config, "sample_size") else 128
        return int(size if isinstance(size, int) else size[0]) * self.shrinks

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        count = int(self.denoiser.config.in_channels)
        return count // 4 if self.kind == "FluxPipeline" else count

    def train(self, mode: bool = True) -> Self:
        """The mode of the denoiser, and of text encoders that train; what is frozen has no dropout."""
        super().train(mode)
        for name, part in self.parts().items():
            if part is not self.denoiser and self._is_as_it_was(name):
                part.eval()
        return self

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.denoiser.enable_gradient_checkpointing()

    activation_checkpointing_enable = gradient_checkpointing_enable

    def gradient_checkpointing_disable(self) -> None:
        self.denoiser.disable_gradient_checkpointing()

    # -- texts and pictures --------------------------------------------------------------------------------------------

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

    def pixels(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of latents, about in [-1, 1]."""
        vae: Any = self._modules.get("vae")
        if vae is None:
            return nn.functional.pixel_shuffle(latents, self.patch)
        moved = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        found: Tensor = vae.decode(moved.to(vae.dtype), return_dict=False)[0]
        return found

    def drawn_times(self, draws: Tensor) -> Tensor:
        """The times [B] that forward takes for examples of these numbers."""
        return self.process.draw(torch.empty(len(draws), 0), draws, self.times).times

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor,
        texts: Sequence[str],
        draws: Tensor,
        sizes: Tensor,
        examples: Tensor | None = None,
        prior: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the denoiser says of the pictures made noisy.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1].
            draws: [B] whole numbers, from which time and noise of each example follow.
            sizes: [B, 6], see `denoisers.denoise`.
            examples: [B] numbers under which the autoencoder's answers are kept; None or -1 to keep none.
            prior: read by objectives alone.

        Returns:
            loss (the mean squared error), prediction and target [B, C, h, w], alpha and sigma [B].
        """
        with torch.no_grad():
            clean = self.latents(pixel_values, draws, examples)
            drawn = self.process.draw(clean, draws, self.times, self.offset_noise)
            target = self.process.target(clean, drawn)
        said = denoise(
            self.denoiser, noisy(clean, drawn), drawn.times, self.encode(texts), sizes, self.guidance
        )
        loss = nn.functional.mse_loss(said.float(), target.float())
        return {
            "loss": loss,
            "prediction": said,
            "target": target,
            "alpha": drawn.alpha,
            "sigma": drawn.sigma,
        }

    # -- sampling ------------------------------------------------------------------------------------------------------

    def noise(self, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
        """N(0, 1) [B, C, h, w] for pictures of a size (height, width), each from its own seed; on the CPU, so that devices agree.

        Raises:
            ModelError: the size is none that the model can have.
        """
        cell = self.shrinks * (2 if self.kind in ("FluxPipeline", "StableDiffusion3Pipeline") else 1)
        if any(side < 1 or side % cell for side in size):
            near = tuple(max(round(side / cell), 1) * cell for side in size)
            raise ModelError(f"a picture of {size[0]} x {size[1]} pixels: both must be multiples of {cell}, such as {near[0]} x {near[1]}.")  # fmt: skip
        shape = (self.channels, *(side // self.shrinks for side in size))
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    def predictor(
        self, texts: Sequence[str], negative: Sequence[str], guidance: float, size: tuple[int, int]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        """What `decoding.diffusion.denoised` calls: predictions with the texts and, with guidance above 1, without them.

        Flux has guidance as an input; there it is no second prediction.
        """
        sizes = torch.tensor([[*size, 0, 0, *size]] * len(texts), device=self.device)
        distilled = bool(getattr(self.denoiser.config, "guidance_embeds", False))
        given = self.encode(texts)
        if guidance <= 1 or distilled:

            def alone(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
                with steer(timestep=t):
                    return denoise(self.denoiser, z, t, given, sizes, guidance), None

            return alone
        without = self.unconditional(negative)
        both = {name: torch.cat([given[name], without[name]]) for name in given}
        twice = torch.cat([sizes, sizes])

        def predict(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            doubled = torch.cat([t, t])
            with steer(timestep=doubled):
                found = denoise(self.denoiser, torch.cat([z, z]), doubled, both, twice, guidance)
            first, second = found.chunk(2)
            return first, second

        return predict

    def tokens(self, size: tuple[int, int]) -> int:
        """Tokens of a picture of a size (height, width), as schedulers count them that shift by it."""
        patch = (
            2 if self.kind == "FluxPipeline" else int(getattr(self.denoiser.config, "patch_size", None) or 1)
        )
        return (size[0] // self.shrinks // patch) * (size[1] // self.shrinks // patch)

    # -- folders -------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a pipeline's folder, which diffusers loads too unless its kind is `text-to-image`."""
        write_pipeline(self, Path(folder), {PLAIN: {"text_length": self.text_length, "patch": self.patch}})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        return cls.from_settings(pipeline=str(folder))

    def configuration(self) -> dict[str, Any]:
        """The configurations of its parts."""
        found: dict[str, Any] = {}
        for name, part in self.parts().items():
            config: Any = part.config
            found[name] = dict(config.to_dict() if hasattr(config, "to_dict") else config)
        return found
