r"""story-decoder: a text-to-image transformer that continues stories, retro-fitted by a story token, a look at the source frame, and prompts.

    sequence   [prompt P][story 1][text T][codes N], causal; the prompt and the story take the text's positions 0 .. P
    loss       CE(codes) + text_weight CE(text), the mean over the frames

The frames of a story run side by side; they meet in the source frame, which every third block attends to, and in the story token, which has read
the captions up to its own. StoryDALL-E: Maharana et al. 2022, arXiv:2209.06192. At the start the looks add nothing; the paper's released code
left them out of what trains and is saved, here they are modules like others.

    model: {composite: story-decoder, layers: 42, width: 1536, heads: 24, sentences: minilm, pictures: my-vqgan, tokenizer: my-tokenizer}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.picture_codes import CellCodes, CellSettings, load_vq
from adaptome.models.picture_decoder import Cache, PictureDecoder, Prompt, SourceAttention, Story


class StoryDecoderSettings(CompositeSettings):
    layers: int = Field(default=42, ge=1)
    width: int = Field(default=1536, ge=1, description="d")
    heads: int = Field(default=24, ge=1)
    words: int = Field(default=16384, ge=2, description="of the text's vocabulary")
    text_length: int = Field(default=64, ge=2, description="tokens of a caption")
    cells: CellSettings | None = Field(default=None, description="pictures as cells of few colours")
    pictures: str | None = Field(default=None, description="or by a VQGAN: folder or hub id of a diffusers VQModel")  # fmt: skip
    codes: int | None = Field(default=None, description="of the VQGAN, where the model is built without it")
    length: int | None = Field(default=None, description="codes of a picture, likewise")
    sentences: Part | None = Field(default=None, description="encoder of whole captions for the story token; none: no story token")  # fmt: skip
    sentence_width: int | None = Field(default=None, description="of its embeddings, where the model is built without it")  # fmt: skip
    causal_story: bool = Field(default=True, description="a caption's story token has read those up to it; false: all")  # fmt: skip
    source_layers: list[int] | None = Field(default=None, description="blocks that attend to the source frame; default: 2, 5, 8, ...")  # fmt: skip
    prompts: int = Field(
        default=0, ge=0, description="learned tokens before the story's (32 in prompt tuning)"
    )
    prompt_dropout: float = Field(default=0.2, ge=0, lt=1)
    text_weight: float = Field(default=1.0, ge=0, description="of the text's loss; 0 leaves it out")
    tokenizer: str | None = Field(
        default=None, description="folder or hub id; default: the sentence encoder's"
    )

    @model_validator(mode="after")
    def _whole(self) -> StoryDecoderSettings:
        if self.cells is None and self.pictures is None and (self.codes is None or self.length is None):
            raise ValueError("say how pictures become codes: cells, or pictures (a VQGAN)")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.prompts + 1 > self.text_length:
            raise ValueError(f"{self.prompts} prompts and a story token need so many text positions; text_length is {self.text_length}")  # fmt: skip
        wrong = [i for i in self.looks if not 0 <= i < self.layers]
        if wrong:
            raise ValueError(f"source_layers: {wrong[0]} is none of the blocks 0 .. {self.layers - 1}")
        return self

    @property
    def looks(self) -> list[int]:
        """Blocks with a look at the source frame."""
        return list(range(2, self.layers, 3)) if self.source_layers is None else list(self.source_layers)


@register_model("story-decoder")
class StoryDecoder(CompositeModel):
    """`decoder` is the backbone; `sources`, `story` and `prompt` retro-fit it. `retrofit` false runs the backbone alone."""

    Settings = StoryDecoderSettings
    loaders: ClassVar[Mapping[str, Any]] = {"sentences": "AutoModel"}

    def build(self) -> None:
        s = self.settings
        self.picture_codes: Any = None
        if s.cells is not None:
            self.picture_codes = CellCodes(s.cells)
        elif s.pictures is not None:
            self.picture_codes = load_vq(s.pictures)
        codes, length = (s.codes, s.length) if self.picture_codes is None else (self.picture_codes.count, self.picture_codes.length)  # fmt: skip
        self.length = int(length)
        self.decoder = PictureDecoder(
            s.width, s.heads, s.layers, s.words, s.text_length, int(codes), self.length
        )
        self.sources = nn.ModuleDict({str(i): SourceAttention(s.width, s.heads) for i in s.looks})
        encoder: Any = self._modules.get("sentences")
        wide = s.sentence_width if encoder is None else encoder.config.hidden_size
        self.story = Story(s.width, s.heads, int(wide), s.causal_story) if wide else None
        self.prompt = Prompt(s.prompts, s.width, s.prompt_dropout) if s.prompts else None
        self.retrofit = True
        self._sentences: dict[tuple[int, ...], Tensor] = {}
        if encoder is not None:
            encoder.requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        return {name: part for name, part in super().parts().items() if part is not None}

    def train(self, mode: bool = True) -> Self:
        """The mode of what may learn: the sentence encoder, whose vectors are kept, and the VQGAN have none of their dropout."""
        super().train(mode)
        for part in (self._modules.get("sentences"), self.picture_codes):
            if part is not None:
                part.eval()
        return self

    # -- what is read ------------------------------------------------------------------------------------------------

    def sentence_embeddings(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The frozen encoder's mean over the tokens of each caption, unit length: [..., T] -> [..., E]; kept for each caption."""
        encoder: Any = self.get_submodule("sentences")
        flat, seen = ids.flatten(0, -2), mask.flatten(0, -2)
        keys = [tuple(row[on.bool()].tolist()) for row, on in zip(flat, seen, strict=True)]
        for number, key in enumerate(keys):
            if key not in self._sentences:
                one = flat[number][seen[number].bool()][None]  # padded on either side
                with torch.no_grad():
                    hidden = encoder(
                        input_ids=one, attention_mask=torch.ones_like(one)
                    ).last_hidden_state.float()
                self._sentences[key] = F.normalize(hidden.mean(1)[0], dim=0).cpu()
        found = torch.stack([self._sentences[key] for key in keys]).to(self.decoder.norm.weight)
        return found.unflatten(0, ids.shape[:-1])

    def _read(self, ids: Tensor | None, mask: Tensor | None) -> Tensor | None:
        if ids is None or mask is None or not self.retrofit or "sentences" not in self._modules:
            return None
        return self.sentence_embeddings(ids, mask)

    def prefix(self, ids: Tensor, sentences: Tensor | None) -> Tensor:
        """[B L, P + 1 + T, d] for captions ids [B, L, T]: prompts, story token and text."""
        text = self.decoder.text(ids.flatten(0, 1))
        if not self.retrofit:
            return text
        extra = []
        if self.prompt is not None:
            extra.append(self.prompt().expand(len(text), -1, -1))
        if self.story is not None:
            if sentences is None:
                raise ModelError("the story token needs the captions' sentence embeddings")
            extra.append(self.story(sentences).flatten(0, 1)[:, None])
        if not extra:
            return text
        before = torch.cat(extra, 1)
        return torch.cat([before + self.decoder.text_positions.weight[: before.shape[1]], text], 1)

    def looked_at(self, source: Tensor, frames: int) -> dict[str, Cache]:
        """Keys and values of the source frames' embeddings, codes [B, N], for each of a story's frames; made once for a story."""
        if not self.retrofit:
            return {}
        seen = self.decoder.image(source)
        kept = {name: look.keys(seen) for name, look in self.sources.items()}  # type: ignore[operator]
        return {
            name: (k.repeat_interleave(frames, 0), v.repeat_interleave(frames, 0))
            for name, (k, v) in kept.items()
        }

    def run(
        self, x: Tensor, looks: dict[str, Cache], first: int, before: list[Cache] | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Hidden states of x [B, T, d], the last T positions, and keys and values so far.

        Args:
            first: how many of x stand before the last text position; the looks act from there on.
        """
        acts = (torch.arange(x.shape[1], device=x.device) >= first).to(x)
        caches = []
        for i, block in enumerate(self.decoder.blocks):
            x, kept = block.attend(x, None if before is None else before[i])  # type: ignore[operator]
            caches.append(kept)
            if str(i) in looks:
                x = x + self.sources[str(i)](x, looks[str(i)], acts)
            x = block.think(x)  # type: ignore[operator]
        return self.decoder.norm(x), caches

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        sentence_mask: Tensor | None = None,
        codes: Tensor | None = None,
        source: Tensor | None = None,
        sentences: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses and logits of whole stories.

        Args:
            input_ids: [B, L, T] captions, padded; padding is learned as minDALL-E has it.
            pixel_values: [B, 1 + L, 3, H, W] in [-1, 1], the source frame first.
            sentence_ids, sentence_mask: [B, L, S] the captions as the sentence encoder takes them, where there is one.
            codes, source: [B, L, N] and [B, N], in place of pictures. sentences: [B, L, E], in place of sentence_ids.

        Returns:
            loss, image_loss, text_loss, logits [B, L, N, codes].
        """
        if pixel_values is not None:
            every = self.picture_codes.encode(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
            source, codes = every[:, 0], every[:, 1:]
        if codes is None or source is None:
            raise ModelError("story-decoder: give pixel_values, or codes and source.")
        sentences = self._read(sentence_ids, sentence_mask) if sentences is None else sentences
        stories, frames, words = input_ids.shape
        before = self.prefix(input_ids, sentences)
        extra, flat = before.shape[1] - words, codes.flatten(0, 1)
        x = torch.cat([before, self.decoder.image(flat[:, :-1])], 1)
        hidden, _ = self.run(x, self.looked_at(source, frames), extra + words - 1)
        logits = self.decoder.image_head(hidden[:, extra + words - 1 :])
        image = F.cross_entropy(logits.float().flatten(0, 1), flat.flatten())
        found = {"loss": image, "image_loss": image.detach()}
        if self.settings.text_weight:
            said = self.decoder.text_head(hidden[:, extra : extra + words - 1])
            text = F.cross_entropy(said.float().flatten(0, 1), input_ids.flatten(0, 1)[:, 1:].flatten())
            found |= {"loss": image + self.settings.text_weight * text, "text_loss": text.detach()}
        return {**found, "logits": logits.unflatten(0, (stories, frames))}

    # -- drawing -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(
        self,
        input_ids: Tensor,
        source: Tensor,
        sentence_ids: Tensor | None = None,
        sentence_mask: Tensor | None = None,
        sentences: Tensor | None = None,
        top_k: int = 256,
        top_p: float = 1.0,
        temperature: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Codes [B, L, N] of the frames of stories, code by code with kept keys; see `forward`.

        Args:
            source: codes [B, N].
            top_k, top_p: among how many codes, and within which share of their probability, each is drawn (in this order, as minDALL-E does). top_k 1 takes the likeliest.
            generators: one for each story, on the CPU, so that devices agree.
        """
        sentences = self._read(sentence_ids, sentence_mask) if sentences is None else sentences
        stories, frames, _ = input_ids.shape
        x, looks = self.prefix(input_ids, sentences), self.looked_at(source, frames)
        caches: list[Cache] | None = None
        made: list[Tensor] = []
        for place in range(self.length):
            hidden, caches = self.run(x, looks, x.shape[1] - 1, caches)
            logits = self.decoder.image_head(hidden[:, -1]).float()
            made.append(drawn(logits / temperature, top_k, top_p, frames, generators))
            x = self.decoder.image(made[-1][:, None], place)
        return torch.stack(made, 1).unflatten(0, (stories, frames))


def drawn(
    logits: Tensor, top_k: int, top_p: float, frames: int, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """A code [B] from each row of logits [B, codes]."""
    values, places = logits.sort(-1, descending=True)
    shares = values[:, :top_k].softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = (shares * (before < top_p)).cpu()
    if generators is None:
        chosen = torch.multinomial(shares, 1)
    else:
        parts = zip(shares.split(frames), generators, strict=True)
        chosen = torch.cat([torch.multinomial(part, 1, generator=generator) for part, generator in parts])
    return places.gather(1, chosen.to(places.device))[:, 0]
