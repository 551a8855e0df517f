r"""dense-multitask: one Swin encoder for several dense tasks, a decoder for each.

    maps_t = stages(encoder, t),   o_t = decoder_t(maps_t),   L = sum_t w_t L_t(o_t, y_t)      over the tasks that the batch has labels of

passes    shared: the encoder runs once, and all tasks read the same maps (decoders alone, LoRA)
          streams: it runs once, and each task has a stream of its own through the last block of every stage (MTLoRA; see `ad.TaskStreams`)
          each: it runs once for every task, steered to it: `ad.steer(task=...)` (Polyhistor, adapters by task)
maps      with `decoder: hrnet` those that the next stage takes, patches merged (MTLoRA); with `mlp` those of each stage's own blocks
shapes    pixels [batch, 3, h, w]; o_t [batch, outputs of t, h, w]; y_t [batch, h, w], of normals [batch, h, w, 3]
losses    by the tasks' kinds, see `models.dense_losses`
source    MTLoRA (Agiza et al. 2024), arXiv:2403.20320; Polyhistor (Liu et al. 2022), arXiv:2210.03265
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.core.steer import steer
from adaptome.core.streams import TaskStreams
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.decoders import DECODERS
from adaptome.models.dense_losses import LOSSES, Kind
from adaptome.models.encoders import as_map, load_encoder, map_widths, smallest, stride, swin_maps
from adaptome.models.windows import padded

#: channels of the decoders in the papers: of the first stage's map, and of all
WIDTHS = {"hrnet": 18, "mlp": 256}


class DenseOutput(BaseModel):
    """What a task's map is."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    outputs: int = Field(ge=1, description="channels of its map")
    weight: float = Field(default=1.0, ge=0, description="of its loss")


class DenseMultitaskSettings(CompositeSettings):
    encoder: Part = Field(description="a Swin")
    tasks: dict[str, DenseOutput] = Field(default_factory=dict, description="by name; the task knows them")
    decoder: Literal["hrnet", "mlp"] = Field(default="hrnet", description="of every task")
    width: int | None = Field(
        default=None, ge=1, description="channels of the decoders; default: the papers'"
    )
    passes: Literal["shared", "streams", "each"] = Field(
        default="shared", description="how often the encoder runs, and what tells it the task"
    )


@register_model("dense-multitask")
class DenseMultitask(CompositeModel):
    """Several maps of a picture, by one encoder."""

    Settings = DenseMultitaskSettings
    loaders: ClassVar = {"encoder": load_encoder}
    encoder: nn.Module

    def build(self) -> None:
        own = self.settings
        if not hasattr(self.encoder.config, "depths"):
            raise ModelError(f"dense-multitask works with Swin; {type(self.encoder).__name__} is none.")
        if not own.tasks:
            raise ModelError("dense-multitask needs tasks.")
        widths, self.merged = map_widths(self.encoder), own.decoder == "hrnet"
        widths = [*widths[1:], widths[-1]] if self.merged else widths
        make, width = DECODERS[own.decoder], own.width or WIDTHS[own.decoder]
        self.decoders = nn.ModuleDict({name: make(widths, width, task.outputs) for name, task in own.tasks.items()})  # fmt: skip

    def stages(self) -> dict[str, str]:
        """Where the streams of tasks begin and end: the last block of each stage, to the end of the stage where patches are merged."""
        found = {}
        for i, stage in enumerate(self.encoder.encoder.layers):  # type: ignore[union-attr,arg-type]
            last = f"encoder.layers.{i}.blocks.{len(stage.blocks) - 1}"
            found[last] = f"encoder.layers.{i}" if self.merged else last
        return found

    def maps(self, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Each task's maps of pixels, whose sides `stride` divides."""
        names, passes = list(self.settings.tasks), self.settings.passes
        if passes == "shared":
            return dict.fromkeys(names, swin_maps(self.encoder, pixels, self.merged))
        if passes == "each":
            made = {}
            for name in names:
                with steer(task=name):
                    made[name] = swin_maps(self.encoder, pixels, self.merged)
            return made
        found = TaskStreams(self.encoder, names, self.stages())(pixel_values=pixels)
        return {
            name: [as_map(self.encoder, each[name], pixels, i, self.merged) for i, each in enumerate(found)]
            for name in names
        }

    def forward(self, pixel_values: Tensor, labels: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """A map for each task, by its name; with labels `loss`, first."""
        height, width = pixel_values.shape[-2:]
        pixels = padded(pixel_values, stride(self.encoder), smallest(self.encoder))
        maps = self.maps(pixels)
        made: dict[str, Tensor] = {
            name: decoder(maps[name], pixels.shape[-2:])[..., :height, :width]
            for name, decoder in self.decoders.items()
        }
        if labels is None:
            return made
        terms = [
            task.weight * LOSSES[task.kind](made[name], labels[name])
            for name, task in self.settings.tasks.items()
            if name in labels
        ]
        return {"loss": sum(terms[1:], terms[0]), **made}
