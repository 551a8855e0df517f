r"""modular-qa: one frozen Q-Former read by every modality with adapters, queries and projections of its own, and a frozen language model that answers.

    model: {composite: modular-qa, base: Salesforce/blip2-flan-t5-xl, modalities: {rgb: {}, audio: {kind: segments, width: 768}, depth: {}}}

    h_m = stream m around base.qformer            [batch, T, q, D] (see `streams`); the adapters named m run, and those that are named for no modality
    fusion 'concat'    [prefix_t, h_rgb,t for every t] [every prefix] [side_t for every t] [question]        side = gated sum of all h_m but the first
    fusion 'add'       [prefix_t, h_rgb,t + side_t for every t] [question]
    fusion 'none'      [prefix_t, h_rgb,t, h_m,t for every other m, for every t] [question]                  grows with every modality

In fused modes what the language model reads does not grow with the modalities. While stream m runs, adapters are steered by `task=m`, so that a method
that has branches by task (omni-lora, mtlora) may stand once in place of an adapter for each modality. Features come computed, or from pictures through
the base's own vision encoder, and from sounds through `audio_encoder`.

start     a stream begins with the queries and the projection of the base; one that is added to a saved model, with those of its first stream
source    CREMA (Yu et al.), arXiv:2402.05889, after BLIP-2 (Li et al.), arXiv:2301.12597
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError, TornFileError, did_you_mean
from adaptome.core.rows import running_only
from adaptome.core.steer import steer
from adaptome.models.answering import answer_loss, answer_scores, generated, greedy_hits, right_padded
from adaptome.models.base import (
    CONFIG,
    WEIGHTS,
    CompositeModel,
    CompositeSettings,
    Part,
    load_part,
    read_configuration,
    register_model,
)
from adaptome.models.streams import Fusion, Stream, StreamSettings


class ModularQASettings(CompositeSettings):
    base: Part = Field(
        description="a BLIP-2: its Q-Former and language model, and its vision encoder for pictures"
    )
    audio_encoder: Part | None = Field(
        default=None,
        description="of sounds where they come without features: an audio spectrogram transformer",
    )
    modalities: dict[str, StreamSettings] = Field(
        default_factory=lambda: {"rgb": StreamSettings()},
        min_length=1,
        description="by name; the first is the video, beside which the others are fused",
    )
    fusion: Literal["concat", "add", "none"] = Field(
        default="concat", description="the others' tokens gated into one block behind the video's, added to it, or all one after another"
    )  # fmt: skip
    fusion_start: Literal["linear", "zero"] = Field(
        default="linear", description="as a Linear is drawn, or adding nothing at first"
    )

    @field_validator("modalities")
    @classmethod
    def _named(cls, given: dict[str, StreamSettings]) -> dict[str, StreamSettings]:
        for name in given:
            if not re.fullmatch(r"[A-Za-z][\w-]*", name) or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"{name!r} cannot name a modality: take letters, digits, '-' and '_', as rgb, audio, depth"
                )
        if next(iter(given.values())).kind != "frames":
            raise ValueError(f"the first modality, {next(iter(given))}, must be of kind frames")
        return given


def load_base(part: Part, weights: bool) -> nn.Module:
    """A BLIP-2.

    Raises:
        ModelError: it cannot be had, or is none.
    """
    loaded: Any = load_part("AutoModelForImageTextToText", part, weights)
    lacking = [n for n in ("qformer", "query_tokens", "language_projection", "language_model", "vision_model") if not hasattr(loaded, n)]  # fmt: skip
    if lacking or getattr(loaded.config.qformer_config, "use_qformer_text_input", False):
        raise ModelError(
            f"model.base: {type(loaded).__name__} is no BLIP-2 whose Q-Former reads queries alone. Take e.g. Salesforce/blip2-flan-t5-xl."
        )
    if part.from_config is not None:  # transformers starts them all at 0, where they would stay alike
        nn.init.normal_(loaded.query_tokens, std=loaded.config.qformer_config.initializer_range)
    text = loaded.language_model.config
    if text.is_encoder_decoder and getattr(text, "decoder_start_token_id", None) is None:
        text.decoder_start_token_id = text.pad_token_id or 0
        loaded.language_model.generation_config.decoder_start_token_id = text.decoder_start_token_id
    built: nn.Module = loaded
    return built


@register_model("modular-qa")
class ModularQA(CompositeModel):
    """Answers questions about a video and what else is known of it."""

    Settings = ModularQASettings
    loaders: ClassVar = {"base": load_base, "audio_encoder": "AutoModel"}
    grows = ("streams", "fusion")
    base: Any

    def build(self) -> None:
        own, config = self.settings, self.base.config
        inner, hidden = config.qformer_config.encoder_hidden_size, config.qformer_config.hidden_size
        outer, count = self.base.language_projection.out_features, self.base.query_tokens.shape[1]
        eps = config.vision_config.layer_norm_eps
        made = {
            name: Stream(one.width or inner, inner, count, hidden, outer, eps)
            for name, one in own.modalities.items()
        }
        norm = self.base.vision_model.post_layernorm
        for name, stream in made.items():
            fits = own.modalities[name].kind == "frames" and norm.weight.shape == stream.norm.weight.shape
            stream.start(self.base.query_tokens, self.base.language_projection, norm if fits else None)
        self.streams = nn.ModuleDict(made)
        self.names: list[str] = list(made)
        sides = self.names[1:]
        self.fusion = Fusion(sides, outer, own.fusion_start) if sides and own.fusion != "none" else None
        #: sets of modalities that evaluation scores beside all of them, set by who evaluates
        self.sets: Sequence[Sequence[str]] = ()

    @classmethod
    def extended(cls, folder: Path, **settings: Any) -> Self:
        """The model of a folder with further modalities, or another fusion, as `settings` say.

        Raises:
            ModelError: the folder holds another model. TornFileError: its weights do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        kind, own = read_configuration(folder)
        if kind != cls.name:
            raise ModelError(f"{folder} holds a {kind}, not a {cls.name}.")
        known = dict(own["modalities"])
        wanted = {**known, **(settings.get("modalities") or {})}
        made = cls.from_settings(weights=False, **{**own, **settings, "modalities": wanted})
        new = [name for name in wanted if name not in known]
        allowed = ("fusion.", *(f"streams.{name}." for name in new))
        try:
            missing, unexpected = load_model(made, str(folder / WEIGHTS), strict=False)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise TornFileError(
                f"{folder / WEIGHTS} does not fit its {CONFIG} with these modalities: {error}"
            ) from error
        odd = [key for key in missing if not key.startswith(allowed)]
        odd += [key for key in unexpected if not key.startswith("fusion.")]
        if odd:
            raise TornFileError(
                f"{folder / WEIGHTS} does not hold the weights of its {CONFIG}: {sorted(odd)[0]}."
            )
        first: Any = made.streams[made.names[0]]
        for name in new:
            made.stream(name).start(first.queries, first.outward, None)
        return made

    # -- modalities ----------------------------------------------------------------------------------------------------

    def stream(self, name: str) -> Stream:
        """A modality's own layers.

        Raises:
            ModelError: there is none of this name.
        """
        if name not in self.names:
            raise ModelError(
                f"the model has no modality {name!r}.{did_you_mean(name, self.names)} It has {', '.join(self.names)}."
            )
        found: Any = self.streams[name]
        return found

    def tokens(self, name: str, features: Tensor, mask: Tensor | None = None, adapted: bool = True) -> Tensor:
        """h_m [batch, T or 1, q, D] of a modality.

        Args:
            features: [batch, T or A, n, width], or [batch, n, width] of the whole.
            mask: features' shape without the width; False where they are padding.
            adapted: False runs the Q-Former without any adapter.
        """
        stream, kind = self.stream(name), self.settings.modalities[name].kind
        if kind == "whole":
            features, mask = features[:, None], None if mask is None else mask[:, None]
        batch, parts = features.shape[:2]
        expected = stream.inward.in_features if isinstance(stream.inward, nn.Linear) else stream.norm.normalized_shape[0]  # fmt: skip
        if features.dim() != 4 or features.shape[-1] != expected:
            raise ModelError(
                f"{name}: features [batch, {'n' if kind == 'whole' else 'parts, n'}, {expected}] are expected, these are {list(features.shape)}. model.modalities.{name} says their kind and width."
            )
        inner = stream.norm(stream.inward(features.flatten(0, 1).to(stream.norm.weight.dtype)))
        # a part without anything is padding as a whole: it has no weight below, and attention over nothing would be no number
        seen = None if mask is None else mask.flatten(0, 1) | ~mask.flatten(0, 1).any(-1, keepdim=True)
        queries = stream.queries.expand(batch * parts, -1, -1)

        def keep(adapter: str) -> bool:
            return adapted and (adapter == name or adapter not in self.names)

        with running_only(self, self.base.qformer, keep), steer(task=name, modality=name):
            out = self.base.qformer(
                query_embeds=queries, encoder_hidden_states=inner, encoder_attention_mask=None if seen is None else seen.long()
            )  # fmt: skip
        made: Tensor = stream.outward(out.last_hidden_state).unflatten(0, (batch, parts))
        if kind != "segments":
            return made
        there = torch.ones(batch, parts, device=made.device) if mask is None else mask.any(-1).float()
        weight = (there / there.sum(1, keepdim=True).clamp_min(1)).to(made.dtype)
        return (made * weight[..., None, None]).sum(1, keepdim=True)

    def encode(self, name: str, raw: Tensor) -> Tensor:
        """Features of a modality from pixels [batch, T, 3, h, w], or from spectrograms [batch, A, frames, mels].

        Raises:
            ModelError: nothing here encodes it.
        """
        if raw.dim() == 5:
            vision = self.base.vision_model
            states = vision.encoder(
                inputs_embeds=vision.embeddings(raw.flatten(0, 1).to(vision.dtype))
            ).last_hidden_state
            made: Tensor = states.unflatten(0, raw.shape[:2])  # before its last norm, for the stream has that
            return made
        encoder: Any = self._modules.get("audio_encoder")
        if encoder is None:
            raise ModelError(
                f"{name}: a sound came without features, and the model has no audio_encoder.\n  Give features, or name one: model.audio_encoder=MIT/ast-finetuned-audioset-10-10-0.4593."
            )
        heard: Tensor = encoder(raw.flatten(0, 1)).last_hidden_state
        return heard.unflatten(0, raw.shape[:2])

    def all_tokens(
        self,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None,
        raw: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Tokens [batch, T, q, D] of every modality that is given, in the model's order; T that of the first."""
        given = dict(features)
        for name, value in (raw or {}).items():
            with torch.no_grad():
                given[name] = self.encode(name, value)
        found = {n: self.tokens(n, given[n], (masks or {}).get(n)) for n in self.names if n in given}
        if self.names[0] not in found:
            raise ModelError(f"there are no features of {self.names[0]}, beside which the others are fused.")
        frames = found[self.names[0]].shape[1]
        for name, value in found.items():
            if value.shape[1] not in (1, frames):
                raise ModelError(f"{name} has {value.shape[1]} frames, {self.names[0]} has {frames}.")
        return {name: value.expand(-1, frames, -1, -1) for name, value in found.items()}

    # -- what the language model reads ---------------------------------------------------------------------------------

    def read(
        self,
        tokens: Mapping[str, Tensor],
        available: Mapping[str, Tensor],
        frame_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [batch, n, D] and their mask [batch, n].

        Args:
            tokens: see `all_tokens`.
            available: by modality, [batch].
            frame_ids: [batch, T, p] of the words before each frame, with their mask.
            input_ids: [batch, length] of the question.
        """
        words = self.base.language_model.get_input_embeddings()
        first, *sides = tokens
        main, dtype = tokens[first], words.weight.dtype
        prefix, ids = words(frame_ids), torch.ones_like(frame_ids) if frame_mask is None else frame_mask
        ids, here = ids.bool(), available[first]
        fused = bool(sides) and self.fusion is not None
        blocks: list[tuple[Tensor, Tensor]] = []
        if self.settings.fusion == "none":
            parts = [(prefix, ids), *((tokens[n], _seen(tokens[n], available[n])) for n in tokens)]
            blocks.append(_interleaved(parts, dtype))
        elif not fused:
            blocks.append(_interleaved([(prefix, ids), (main, _seen(main, here))], dtype))
        else:
            assert self.fusion is not None
            side = self.fusion({name: tokens[name] for name in sides}, available)
            any_ = torch.stack([available[name] for name in sides]).any(0)
            if self.settings.fusion == "add":
                main = main + side * any_.to(side.dtype).view(-1, 1, 1, 1)
                blocks.append(_interleaved([(prefix, ids), (main, _seen(main, here))], dtype))
            else:
                blocks.append(_interleaved([(prefix, ids), (main, _seen(main, here))], dtype))
                again = ids & any_.view(-1, 1, 1)
                blocks.append((prefix.flatten(1, 2), again.flatten(1)))
                blocks.append((side.flatten(1, 2), _seen(side, any_).flatten(1)))
        blocks.append((words(input_ids), attention_mask.bool()))
        embeddings = torch.cat([one.to(dtype) for one, _ in blocks], 1)
        return right_padded(embeddings, torch.cat([mask for _, mask in blocks], 1).long())

    def forward(
        self,
        frame_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        features: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        raw: Mapping[str, Tensor] | None = None,
        available: Mapping[str, Tensor] | None = None,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
        options: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of the answers, and where it is asked for how likely each of the options is.

        Args:
            features, masks, raw: by modality, see `tokens` and `encode`.
            available: by modality, [batch] bools; None for all that are given.
            labels: [batch, length] token numbers of the answers, -100 where nothing stands.
            options: [batch, k, length] of the answers to choose from.

        Returns:
            loss, with labels; and in evaluation logits [batch, 1 + sets, k]: the options' log likelihoods with all modalities, then with
            each of `sets`; without options k = 2, no and yes to whether greedy decoding gives the label.
        """
        tokens = self.all_tokens(features or {}, masks, raw)
        everywhere = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        there = {name: (available or {}).get(name, everywhere) for name in tokens}
        read = (frame_ids, input_ids, attention_mask, frame_mask)
        made: dict[str, Tensor] = {}
        model = self.base.language_model
        if labels is not None:
            made["loss"] = answer_loss(model, *self.read(tokens, there, *read), labels)
        if self.training or (labels is None and options is None):
            return made
        scored = []
        for chosen in (self.names, *self.sets):
            kept = {name: value for name, value in tokens.items() if name in chosen}
            given = self.read(kept, there, *read)
            if options is not None:
                scored.append(answer_scores(model, *given, options))
            else:
                assert labels is not None
                hits = greedy_hits(model, *given, labels).float()
                scored.append(torch.stack([1 - hits, hits], 1))
        made["logits"] = torch.stack(scored, 1)
        return made

    @torch.no_grad()
    def answers(self, batch: Mapping[str, Any], **settings: Any) -> Tensor:
        """Token numbers of the language model's own answers to a batch, as `forward` takes it."""
        tokens = self.all_tokens(batch.get("features") or {}, batch.get("masks"), batch.get("raw"))
        everywhere = torch.ones(len(batch["input_ids"]), dtype=torch.bool, device=self.device)
        there = {name: (batch.get("available") or {}).get(name, everywhere) for name in tokens}
        given = self.read(tokens, there, batch["frame_ids"], batch["input_ids"], batch["attention_mask"], batch.get("frame_mask"))  # fmt: skip
        return generated(self.base.language_model, *given, **settings)


def _seen(tokens: Tensor, available: Tensor) -> Tensor:
    """[batch, T, q] bools: the tokens of rows that have the modality."""
    return available.view(-1, 1, 1).expand(tokens.shape[:-1])


def _interleaved(parts: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[batch, T, n_i, D] with masks [batch, T, n_i], one after another within each frame, as [batch, T sum n_i, D] with its mask."""
    joined = torch.cat([one.to(dtype) for one, _ in parts], 2)
    return joined.flatten(1, 2), torch.cat([mask for _, mask in parts], 2).flatten(1)
