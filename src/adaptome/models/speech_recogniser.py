r"""speech-recogniser: a language model writes what is heard, seen on the lips, or both, from compressed streams at any of several rates.

    A = P_a(compress(audio(x), a)),   V = P_v(compress(video(y), v))
    [BOS] [<audio> A </audio>] [<video> V </video>] prompt transcript EOS              the parts that the task t has
    L = sum_t lambda_t CE_t / |tasks|,   a ~ U{audio rates}, v ~ U{video rates}        one pair a step: |tasks| forwards, however many rates
    gradient = mean over all pairs, in expectation

tasks     audio, video, audiovisual: each forward is steered by its name (`ad.steer(task=...)`), which Omni-LoRA's branches read
shapes    x: log-mel [batch, mels, frames]; y: grey frames [batch, time, height, width]; or features [batch, time, width] in place of both
marks     <audio> and the others are vectors of the model's own, drawn from a fixed seed: the vocabulary stays, and a folder holds them
source    Omni-AVSR (Cappellazzo et al.), arXiv:2511.07253; its code gives the language model no mask, here padding is masked
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError, TornFileError
from adaptome.core.steer import steer, steered_again
from adaptome.models.base import (
    WEIGHTS,
    CompositeModel,
    CompositeSettings,
    Part,
    load_part,
    part_config,
    read_configuration,
    register_model,
)
from adaptome.models.compression import Compression, Projectors, compressed
from adaptome.models.lip_encoder import load_lip_encoder

TASKS = ("audio", "video", "audiovisual")
STREAMS = ("audio", "video")
IGNORED = -100
#: what draws the marks, so that every process has the same
_MARKS_SEED = 2511


class Asked(NamedTuple):
    """What is to be recognised from, and how densely; the rate of a stream that the task has not is 0."""

    task: str
    audio_rate: int = 0
    video_rate: int = 0

    @property
    def label(self) -> str:
        """Such as audiovisual-4-2."""
        return "-".join([self.task, *(str(rate) for rate in self[1:] if rate)])


class Stream(NamedTuple):
    """Features [batch, time, width] and the clips' lengths [batch]."""

    features: Tensor
    lengths: Tensor


class SpeechRecogniserSettings(CompositeSettings):
    audio: Part | None = Field(default=None, description="Whisper, whose encoder is taken")
    video: Part | None = Field(
        default=None, description="a lip encoder (`models.lip_encoder`): a hubert configuration, or a folder"
    )
    llm: Part = Field(description="a causal language model")
    audio_features: int | None = Field(
        default=None, ge=1, description="width of features that the data brings in place of sound"
    )
    video_features: int | None = Field(
        default=None, ge=1, description="width of features that the data brings in place of pictures"
    )
    audio_rates: list[int] = Field(default=[4, 16], min_length=1, description="tokens that become one")
    video_rates: list[int] = Field(default=[2, 5], min_length=1, description="frames that become one")
    compression: Compression = Field(default="average", description="average or stack neighbours")
    projector_width: int = Field(default=2048, ge=1, description="of the projectors' middle")
    projector_norm: bool = Field(default=True, description="LayerNorm at their end")
    shared_projector: bool = Field(default=False, description="one for all rates of a stream (average)")
    tasks: list[Literal["audio", "video", "audiovisual"]] | None = Field(
        default=None, min_length=1, description="that are learned; default: all that the streams admit"
    )
    task_weights: dict[Literal["audio", "video", "audiovisual"], float] = Field(
        default={"audio": 1.0, "video": 1.5, "audiovisual": 1.0}, description="of their losses"
    )
    train_marks: bool = Field(default=False, description="the marks around the streams train too")


def load_audio_encoder(part: Part, weights: bool) -> nn.Module:
    """Whisper's encoder; the decoder is let go of.

    Raises:
        ModelError: it cannot be had, or is no Whisper.
    """
    config = part_config(part)
    if getattr(config, "model_type", None) != "whisper":
        raise ModelError(f"model.audio: a Whisper is expected; found {config.model_type!r}.")
    encoder: nn.Module = load_part("AutoModel", part, weights).encoder  # type: ignore[assignment]
    return encoder


@register_model("speech-recogniser")
class SpeechRecogniser(CompositeModel):
    """Writes what is said from sound, lips, or both."""

    Settings = SpeechRecogniserSettings
    loaders: ClassVar = {
        "audio": load_audio_encoder, "video": load_lip_encoder, "llm": "AutoModelForCausalLM",
    }  # fmt: skip
    llm: nn.Module

    def build(self) -> None:
        own = self.settings
        widths = {name: self._width(name) for name in STREAMS}
        self.streams = [name for name in STREAMS if widths[name]]
        if not self.streams:
            raise ModelError("model: neither audio nor video is named; give one of them, or the width of its features.")  # fmt: skip
        able = [task for task in TASKS if set(streams_of(task)) <= set(self.streams)]
        self.tasks: list[str] = list(own.tasks or able)
        if wrong := [task for task in self.tasks if task not in able]:
            raise ModelError(f"model.tasks names {wrong[0]!r}, and the model has {' and '.join(self.streams)} alone.")  # fmt: skip
        if own.shared_projector and own.compression == "stack":
            raise ModelError("model.shared_projector: stacked tokens are as wide as their rate; take compression=average.")  # fmt: skip
        config: Any = self.llm.config
        out = int(getattr(config, "hidden_size", 0) or config.text_config.hidden_size)
        self.projectors = nn.ModuleDict(
            {
                name: Projectors(
                    int(widths[name] or 0), own.projector_width, out, self.rates(name),
                    own.compression, own.projector_norm, own.shared_projector,
                )
                for name in self.streams
            }
        )  # fmt: skip
        scale = float(getattr(config, "initializer_range", 0.02))
        drawn = torch.randn(4, out, generator=torch.Generator().manual_seed(_MARKS_SEED), device="cpu")
        self.marks = nn.Parameter(scale * drawn.to(next(self.llm.parameters()).device), requires_grad=False)

    def _width(self, name: str) -> int | None:
        given = getattr(self.settings, f"{name}_features")
        part: Any = self._modules.get(name)
        if given is not None and part is not None:
            raise ModelError(f"model.{name}_features: features take the encoder's place; leave model.{name} out.")  # fmt: skip
        if part is None:
            return None if given is None else int(given)
        return int(getattr(part.config, "d_model", 0) or part.config.hidden_size)

    def rates(self, stream: str) -> list[int]:
        """At which a stream can be heard or seen."""
        found: list[int] = list(getattr(self.settings, f"{stream}_rates"))
        return found

    def asked(self, task: str) -> list[Asked]:
        """A task at all its rates."""
        audio = self.rates("audio") if "audio" in streams_of(task) else [0]
        video = self.rates("video") if "video" in streams_of(task) else [0]
        return [Asked(task, a, v) for a in audio for v in video]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Blocks that run again in the backward are steered as they were: the three forwards have different tasks."""
        self.llm.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": steered_again})  # type: ignore[operator]

    activation_checkpointing_enable = gradient_checkpointing_enable

    # -- streams -----------------------------------------------------------------------------------------------------

    def encode(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> dict[str, Stream]:
        """Features of the streams that are given, at their full rate."""
        made = {}
        for name, x, lengths in (("audio", audio, audio_lengths), ("video", video, video_lengths)):
            if x is None or lengths is None or name not in self.streams:
                continue
            least = max(self.rates(name))  # so that a token is left at every rate
            part = self._modules.get(name)
            x = x.to(self.dtype if part is None else next(part.parameters()).dtype)
            if part is None:
                features = x
            elif name == "audio":
                features = part(x).last_hidden_state
            else:
                features = part(x, torch.arange(x.shape[1], device=x.device) < lengths[:, None])
            if features.shape[1] < least:
                features = nn.functional.pad(features, (0, 0, 0, least - features.shape[1]))
            lengths = lengths.clamp(least, features.shape[1])
            made[name] = Stream(features[:, : int(lengths.max())], lengths)
        return made

    def tokens(self, stream: Stream, name: str, rate: int) -> tuple[Tensor, Tensor]:
        """A stream as the language model takes it [batch, floor(T / rate), d], and which of these are no padding."""
        if rate not in self.rates(name):
            raise ModelError(f"{name} rate {rate} was not learned; there are {self.rates(name)}.")
        x, lengths = compressed(stream.features, stream.lengths, rate, self.settings.compression)
        projector = self.projectors[name].at(rate)  # type: ignore[operator]
        x = projector(x.to(next(projector.parameters()).dtype))
        return x, torch.arange(x.shape[1], device=x.device) < lengths[:, None]

    def before(
        self, streams: Mapping[str, Stream], begin: Tensor, prompts: Tensor, asked: Asked
    ) -> tuple[Tensor, Tensor]:
        """What stands before a transcript: embeddings [batch, n, d] and their mask; padding lies between the parts."""
        table, rows = self.llm.get_input_embeddings(), len(begin)  # type: ignore[operator]
        words = prompts[:, TASKS.index(asked.task)]
        dtype = table.weight.dtype
        parts = [(table(begin), torch.ones_like(begin, dtype=torch.bool))]
        for number, name in enumerate(STREAMS):
            if name not in streams_of(asked.task):
                continue
            if name not in streams:
                raise ModelError(f"the task {asked.task!r} needs {name}, and the batch has none.")
            x, mask = self.tokens(streams[name], name, (asked.audio_rate, asked.video_rate)[number])
            marks = [self.marks[2 * number + k].to(dtype).expand(rows, 1, -1) for k in (0, 1)]
            there = mask.new_ones(rows, 1)
            parts += [(marks[0], there), (x.to(dtype), mask), (marks[1], there)]
        parts.append((table(words.clamp_min(0)), words >= 0))
        return torch.cat([x for x, _ in parts], 1), torch.cat([mask for _, mask in parts], 1)

    # -- learning ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        begin: Tensor,
        prompts: Tensor,
        labels: Tensor,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` of the tasks: while training at one drawn pair of rates, else the mean over all; and `logits`, each row's counts
        [batch, what was asked, 3] of summed loss, right tokens and tokens.

        Args:
            begin: [batch, 0 or 1], the token that begins a text.
            prompts: [batch, 3, n], one for each of TASKS, -1 before the shorter ones.
            labels: [batch, m], the transcript and the token that ends it, -100 after the shorter ones.
        """
        streams = self.encode(audio, audio_lengths, video, video_lengths)
        weights, counts, total = self.settings.task_weights, [], torch.zeros((), device=labels.device)
        for task, asked in self._course():
            losses = []
            for one in asked:
                loss, count = self._scored(streams, begin, prompts, labels, one)
                losses.append(loss)
                counts.append(count)
            total = total + weights.get(task, 1.0) * torch.stack(losses).mean()
        return {"loss": total / len(self.tasks), "logits": torch.stack(counts, 1)}

    def _course(self) -> Iterator[tuple[str, list[Asked]]]:
        """Every task, with what is asked of it now."""
        pair = self.draw() if self.training else None
        for task in self.tasks:
            a, v = ((rate if name in streams_of(task) else 0) for name, rate in zip(STREAMS, pair or (0, 0), strict=True))  # fmt: skip
            yield task, self.asked(task) if pair is None else [Asked(task, a, v)]

    def draw(self) -> tuple[int, int]:
        """A rate of each stream, uniform, by torch's generator; the same in all processes of a distributed run."""
        rates = [self.rates(name) for name in STREAMS]
        picked = torch.stack([torch.randint(len(one), ()) for one in rates])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            picked = picked.to(self.device)
            torch.distributed.broadcast(picked, 0)
        a, v = (one[int(k)] for one, k in zip(rates, picked, strict=True))
        return a, v

    def _scored(
        self, streams: Mapping[str, Stream], begin: Tensor, prompts: Tensor, labels: Tensor, asked: Asked
    ) -> tuple[Tensor, Tensor]:
        x, mask = self.before(streams, begin, prompts, asked)
        given = labels != IGNORED
        text = self.llm.get_input_embeddings()(labels.clamp_min(0))  # type: ignore[operator]
        x, mask = torch.cat([x, text], 1), torch.cat([mask, given], 1)
        with steer(task=asked.task):
            made = self.llm(
                inputs_embeds=x, attention_mask=mask.long(), position_ids=places(mask), use_cache=False,
                logits_to_keep=labels.shape[1] + 1,
            )  # fmt: skip
        logits = made.logits[:, -labels.shape[1] - 1 : -1].float()
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # fmt: skip
        right = ((logits.argmax(-1) == labels) & given).sum(1)
        counts = torch.stack([each.detach().sum(1), right, given.sum(1)], 1)
        return each.sum() / given.sum().clamp_min(1), counts.float()

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(
        self, streams: Mapping[str, Stream], begin: Tensor, prompts: Tensor, asked: Asked, **settings: Any
    ) -> Tensor:
        """Tokens [batch, m] that the language model writes; `settings` are those of its `generate`."""
        x, mask = self.before(streams, begin, prompts, asked)
        with steer(task=asked.task):
            found: Tensor = self.llm.generate(inputs_embeds=x, attention_mask=mask.long(), **settings)  # type: ignore[operator]
        return found

    # -- folders -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: Any, **changes: Any) -> Self:
        """The model that `save_pretrained` wrote; with other settings, of which rates alone may bring weights of their own.

        The projector of a rate that the folder does not have begins as that of the nearest rate that it has.

        Raises:
            ModelError: the folder holds another model. TornFileError: its weights do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        kind, settings = read_configuration(Path(folder))
        if kind != cls.name:
            raise ModelError(f"{folder} holds a {kind}, not a {cls.name}.")
        parts = {*STREAMS, "llm"}
        made = cls.from_settings(weights=False, **{**settings, **{k: v for k, v in changes.items() if k not in parts}})  # fmt: skip
        try:
            state = load_file(str(Path(folder) / WEIGHTS))
            absent = made.load_state_dict(made._filled(state, settings), strict=False)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TornFileError(f"{Path(folder) / WEIGHTS} does not hold the weights of its configuration: {error}") from error  # fmt: skip
        there = made.state_dict()
        filled = {there[key].data_ptr() for key in there if key not in absent.missing_keys}
        lost = [
            key for key in absent.missing_keys if there[key].data_ptr() not in filled
        ]  # tied ones are written once
        if lost or absent.unexpected_keys:
            raise TornFileError(f"{Path(folder) / WEIGHTS} does not hold {[*lost, *absent.unexpected_keys][0]}.")  # fmt: skip
        return made

    def _filled(self, state: dict[str, Tensor], before: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state with the projectors of rates that are new, and without those of rates that are gone."""
        made = {key: value for key, value in state.items() if not key.startswith("projectors.")}
        for key, value in self.projectors.state_dict().items():
            stream, rate, inner = key.split(".", 2)
            rates = [] if rate == "all" else before[f"{stream}_rates"]
            nearest = min(rates, key=lambda known, wanted=rate: abs(known - int(wanted)), default="all")
            found = state.get(f"projectors.{stream}.{rate}.{inner}", state.get(f"projectors.{stream}.{nearest}.{inner}"))  # fmt: skip
            fits = found is not None and found.shape == value.shape
            made[f"projectors.{key}"] = found if fits and found is not None else value
        return made


def streams_of(task: str) -> Sequence[str]:
    """What a task reads."""
    return STREAMS if task == "audiovisual" else (task,)


def places(mask: Tensor) -> Tensor:
    """Positions that count what is no padding."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)
