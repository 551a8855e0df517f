"""text-to-image: the models of a diffusers pipeline as one, trained on noisy pictures with their texts, and sampled from.

    model: stabilityai/stable-diffusion-xl-base-1.0                       # in a recipe: a pipeline's folder or hub id
    model: {composite: text-to-image, unet: {from_config: {...}}, text_encoder: minilm, scheduler: {...}}

Its parts stand under the pipeline's names for them (`unet` or `transformer`, `vae`, `text_encoder`, `text_encoder_2`, ...), so that adapters have
the names of diffusers' files. Without a `vae` the pixels are what is made noisy. Only safetensors are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError
from adaptome.core.steer import steer
from adaptome.models.base import CompositeSettings, Part, register_model
from adaptome.models.control import FOLDER as CONTROL
from adaptome.models.control import Control
from adaptome.models.denoisers import ENCODERS, denoise
from adaptome.models.encoding import PLAIN, Encoding
from adaptome.models.noising import Process, Times, noisy
from adaptome.models.pipelines import (
    PARTS,
    load_scheduler,
    load_tokenizer,
    loaded_part,
    pipeline_folder,
    read_index,
    write_pipeline,
)


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
class TextToImage(Encoding):
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
        #: reads conditions; see `add_control`
        self.control: Control | None = None
        if folder is not None and (folder / CONTROL).is_dir():
            self.control = Control.read(folder / CONTROL, self.denoiser)

    def add_control(self, depth: int) -> Control:
        """A ControlNet of the denoiser's first `depth` blocks as they are now; the one that is there stays.

        Raises:
            ModelError: a denoiser that cannot have one, or one of another depth is there.
        """
        if self.control is None:
            self.control = Control.on(self.denoiser, depth)
        elif len(self.control.blocks) != depth:
            raise ModelError(f"control of {depth} blocks: the model comes with one of {len(self.control.blocks)}.")  # fmt: skip
        return self.control

    def controlled(self, conditions: Tensor | None) -> AbstractContextManager[None]:
        """Within it the denoiser is acted on by conditions, latents [B, C, h, w]; by none, and without a ControlNet, it is as it is."""
        if conditions is None or self.control is None:
            return nullcontext()
        return self.control.acting(self.denoiser, conditions)

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
        """Of the denoiser; of a controlled one the copies' activations alone are computed again, for they begin within its first block."""
        if self.control is not None:
            self.control.recompute = True
        else:
            self.denoiser.enable_gradient_checkpointing()

    activation_checkpointing_enable = gradient_checkpointing_enable

    def gradient_checkpointing_disable(self) -> None:
        if self.control is not None:
            self.control.recompute = False
        self.denoiser.disable_gradient_checkpointing()

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
        conditions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the denoiser says of the pictures made noisy.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1].
            draws: [B] whole numbers, from which time and noise of each example follow.
            sizes: [B, 6], see `denoisers.denoise`.
            examples: [B] numbers under which the autoencoder's answers are kept; None or -1 to keep none.
            prior: read by objectives alone.
            conditions: [B, 3, H, W] in [-1, 1], of a controlled model.

        Returns:
            loss (the mean squared error), prediction and target [B, C, h, w], alpha and sigma [B].
        """
        with torch.no_grad():
            clean = self.latents(pixel_values, draws, examples)
            drawn = self.process.draw(clean, draws, self.times, self.offset_noise)
            target = self.process.target(clean, drawn)
            conditions = None if conditions is None else self.plain_latents(conditions)
        with self.controlled(conditions):
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
        self,
        texts: Sequence[str],
        negative: Sequence[str],
        guidance: float,
        size: tuple[int, int],
        conditions: Tensor | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        """What `decoding.diffusion.denoised` calls: predictions with the texts and, with guidance above 1, without them.

        Flux has guidance as an input; there it is no second prediction.

        Args:
            conditions: latents [B, C, h, w] (`plain_latents`), of a controlled model; they act on both predictions.
            facts: what adapters are to know beside the time, tensors of one row for each picture or of none.
        """
        distilled = bool(getattr(self.denoiser.config, "guidance_embeds", False))
        times = 1 if guidance <= 1 or distilled else 2
        given = self.encode(texts)
        if times == 2:
            without = self.unconditional(negative)
            given = {name: torch.cat([given[name], without[name]]) for name in given}
        sizes = torch.tensor([[*size, 0, 0, *size]] * (times * len(texts)), device=self.device)
        known = {
            name: torch.cat([fact] * times) if isinstance(fact, Tensor) and fact.dim() > 1 else fact
            for name, fact in (facts or {}).items()
        }
        if conditions is not None:
            conditions = torch.cat([conditions] * times)

        def predict(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            z, t = torch.cat([z] * times), torch.cat([t] * times)
            with steer(timestep=t, **known), self.controlled(conditions):
                found = denoise(self.denoiser, z, t, given, sizes, guidance)
            if times == 1:
                return found, None
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
        own = {PLAIN: {"text_length": self.text_length, "patch": self.patch}}
        write_pipeline(self, Path(folder), own, self.control)

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
