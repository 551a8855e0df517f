"""Pictures and texts as the rows and batches that `lvlm-embedder` and `dual-encoder` take.

A row of a picture: its tokens up to the prompt's last one, the summary, and what the model is to go on with after it; a row of a text: its
tokens and the prompt's. Rows are padded on the right: what comes after a place changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptome.core.errors import RecipeError
from adaptome.models.lvlm_embedder import NOTHING
from adaptome.tasks.picture_processors import PictureProcessor

#: stands for a text while a chat template is laid around it
_MARK = "\u241f"
#: what an image processor gives that the model takes
PIXELS = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "mm_token_type_ids")


class Around(NamedTuple):
    """What stands before and after a picture or a text."""

    before: str
    after: str


class LvlmRows:
    """Rows for a vision-language model.

    Args:
        image_prompt, text_prompt: hand-written, after a picture and after a text.
        chat: lay the processor's chat template around them, where it has one.
        longest: tokens of a caption that are read.
    """

    def __init__(self, processor: PictureProcessor, image_prompt: str, text_prompt: str, chat: bool = True, longest: int = 500):  # fmt: skip
        self.processor, self.longest = processor, longest
        self.tokenizer = processor.tokenizer
        self.chat = chat and processor.chat_template is not None
        self.image, self.text = self._around(image_prompt, True), self._around(text_prompt, False)
        self.image_prompt, self.text_prompt = self._plain(self.image.after), self._plain(self.text.after)
        for name, ids in (("image_prompt", self.image_prompt), ("text_prompt", self.text_prompt)):
            if not ids:
                raise RecipeError(
                    f"task.{name}: it has no token, and its last one is what sums up. Write a prompt."
                )

    def _around(self, prompt: str, picture: bool) -> Around:
        if not self.chat:
            return Around(self.processor.picture if picture else "", f"\n{prompt}")
        said = f"{_MARK}\n{prompt}"
        content = [*([{"type": "image"}] if picture else []), {"type": "text", "text": said}]
        holder = self.processor.inner if self.processor.inner is not None else self.tokenizer
        talk = [{"role": "user", "content": content}]
        whole = holder.apply_chat_template(
            talk, chat_template=self.processor.chat_template, add_generation_prompt=True, tokenize=False
        )
        before, mark, after = whole.partition(_MARK)
        if not mark:
            raise RecipeError("the chat template leaves the text out; set task.chat=false.")
        return Around(before, after)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, caption: str) -> int:
        """Tokens of a caption."""
        return len(self._plain(caption))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def picture(self, image: Any) -> dict[str, Any]:
        """Tokens `ids` before the prompt, and pixels [1, ...], of one RGB picture."""
        made = self.processor(self.image.before, image)
        pixels = {key: torch.as_tensor(made[key]) for key in PIXELS if key in made}
        if "image_grid_thw" in pixels:
            pixels["pixel_values"] = pixels["pixel_values"][None]
        return {"ids": torch.as_tensor(made["input_ids"])[0].tolist(), "pixels": pixels}

    def going_on(self, picture: Mapping[str, Any], goes_on: str | None) -> dict[str, Any]:
        """A picture's row with the prompt, and the long caption that the model goes on with."""
        own = self._ended(goes_on) if goes_on is not None else []
        return self._row(picture, self.image_prompt, list(range(len(self.image_prompt))), own)

    def asked(self, picture: Mapping[str, Any], question: str, answer: str | None = None) -> dict[str, Any]:
        """A picture's row with a question in place of the prompt, which is not soft, and its answer."""
        after = self._plain(self._around(question, True).after)
        return self._row(picture, after, [-1] * len(after), self._ended(answer) if answer is not None else [])

    def _ended(self, text: str) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [*self._plain(text)[: self.longest], *([] if end is None else [end])]

    def _row(self, picture: Mapping[str, Any], after: list[int], slots: list[int], own: list[int]) -> dict[str, Any]:  # fmt: skip
        before = picture["ids"]
        ids = [*before, *after, *own]
        return {
            "ids": ids, "slots": [-1] * len(before) + slots + [-1] * len(own), "summary": len(before) + len(after) - 1,
            "targets": [NOTHING] * (len(before) + len(after)) + own, "pixels": picture["pixels"],
        }  # fmt: skip

    def caption(self, text: str) -> dict[str, Any]:
        """A text's row: its tokens, after those that the tokenizer begins with, and the prompt's."""
        ids = list(self.tokenizer(self.text.before + text)["input_ids"])
        if self.tokenizer.eos_token_id is not None and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        ids = ids[: self.longest]
        slots = [-1] * len(ids) + list(range(len(self.text_prompt)))
        return {"ids": [*ids, *self.text_prompt], "slots": slots}

    # -- batches -------------------------------------------------------------------------------------------------------

    def pictures(self, rows: Sequence[Mapping[str, Any]], left: bool = False) -> dict[str, Tensor]:
        """Rows of pictures as a batch; `left` pads before them, for writing on."""
        pad = self.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": padded([row["ids"] for row in rows], pad, left),
            "attention_mask": padded([[1] * len(row["ids"]) for row in rows], 0, left),
            "slots": padded([row["slots"] for row in rows], -1, left),
            "targets": padded([row["targets"] for row in rows], NOTHING, left),
            "summary": torch.tensor([row["summary"] for row in rows]),
        }
        width = batch["input_ids"].shape[1]
        for key in rows[0]["pixels"]:
            each = [row["pixels"][key] for row in rows]
            if key == "mm_token_type_ids":
                each = [torch.nn.functional.pad(one, (0, len(row["ids"]) - one.shape[1])) for one, row in zip(each, rows, strict=True)]  # fmt: skip
                each = [torch.nn.functional.pad(one, (width - one.shape[1], 0) if left else (0, width - one.shape[1])) for one in each]  # fmt: skip
            batch[key] = stacked(each)
        return batch

    def captions(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
        """Rows of texts, some for each example, as a batch [batch, C, T]; where an example has fewer it has its first again."""
        each, count = _filled(rows), max(map(len, rows))
        made = {
            "text_ids": padded([row["ids"] for row in each], self.tokenizer.pad_token_id or 0),
            "text_mask": padded([[1] * len(row["ids"]) for row in each], 0),
            "text_slots": padded([row["slots"] for row in each], -1),
        }
        return {name: one.unflatten(0, (len(rows), count)) for name, one in made.items()}


class DualRows:
    """Rows for a pair of encoders: pixels, and tokens as the tokenizer makes them."""

    image_prompt: tuple[int, ...] = ()
    text_prompt: tuple[int, ...] = ()

    def __init__(self, processor: PictureProcessor, longest: int, fixed: bool = False):
        """fixed: every text is padded to `longest`, and the model looks at the padding (SigLIP)."""
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.longest, self.fixed = longest, fixed

    def length(self, caption: str) -> int:
        return len(self.tokenizer(caption, add_special_tokens=False)["input_ids"])

    def picture(self, image: Any) -> dict[str, Any]:
        return {"pixels": {"pixel_values": self.processor.pixels([image])["pixel_values"]}}

    def going_on(self, picture: Mapping[str, Any], goes_on: str | None) -> dict[str, Any]:
        """The picture alone: a pair of encoders writes nothing."""
        return dict(picture)

    def caption(self, text: str) -> dict[str, Any]:
        ids = list(self.tokenizer(text, truncation=True, max_length=self.longest)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and end not in ids:
            ids = [*ids[: self.longest - 1], end]
        return {"ids": ids}

    def pictures(self, rows: Sequence[Mapping[str, Any]], left: bool = False) -> dict[str, Tensor]:
        return {"pixel_values": stacked([row["pixels"]["pixel_values"] for row in rows])}

    def captions(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
        each, count = _filled(rows), max(map(len, rows))
        ids = padded([row["ids"] for row in each], self.tokenizer.pad_token_id or 0, least=self.longest if self.fixed else 0)  # fmt: skip
        mask = padded([[1] * len(row["ids"]) for row in each], int(self.fixed), least=ids.shape[1])
        made = {"text_ids": ids, "text_mask": mask}
        return {name: one.unflatten(0, (len(rows), count)) for name, one in made.items()}


class Collator:
    """Rows -> a batch; texts are left out where a row has none."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.rows.pictures(rows)
        if all(row["texts"] for row in rows):
            batch |= self.rows.captions([row["texts"] for row in rows])
        return {**batch, "captions": torch.tensor([row["captions"] for row in rows])}


def _filled(rows: Sequence[Sequence[Any]]) -> list[Any]:
    count = max(map(len, rows))
    return [one for row in rows for one in [*row, *[row[0]] * (count - len(row))]]


def padded(rows: Sequence[Sequence[int]], value: int, left: bool = False, least: int = 0) -> Tensor:
    """Lists of several lengths as one tensor [rows, longest]."""
    width = max(least, *map(len, rows))
    made = [
        [value] * (width - len(r)) + list(r) if left else list(r) + [value] * (width - len(r)) for r in rows
    ]
    return torch.tensor(made)


def stacked(each: Sequence[Tensor]) -> Tensor:
    """Tensors [1, ...] of several shapes as one [n, ...], with zeros where they end."""
    sizes = [max(one.shape[i] for one in each) for i in range(1, each[0].dim())]
    made = []
    for one in each:
        room = [(0, size - have) for size, have in zip(sizes, one.shape[1:], strict=True)]
        made.append(torch.nn.functional.pad(one, [n for pair in reversed(room) for n in pair]))
    return torch.cat(made)
