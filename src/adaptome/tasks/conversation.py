"""A conversation with a chat model: turns in its tokenizer's template, answers as they are written, and the history that fits its context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.dialogues import check_turns
from adaptome.tasks.chat_templates import rendered, require_template
from adaptome.tasks.inference import evaluating
from adaptome.tasks.language import end_tokens


class Conversation:
    """What was said so far, and who answers.

    Args:
        model: writes the answers (a transformers model with `generate`).
        tokenizer: with a chat template.
        system: the system prompt; None for none.
        max_new_tokens: of an answer, at most.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: drawn from the likeliest tokens that have this much together.
        seed: of the draws.

    Raises:
        RecipeError: the model writes no text, or the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        system: str | None = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        if not hasattr(model, "generate") or not hasattr(tokenizer, "apply_chat_template"):
            raise RecipeError(f"{type(model).__name__} writes no text: there is nobody to talk to. Use `adaptome predict`.")  # fmt: skip
        require_template(tokenizer, getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__)
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self.settings |= {"temperature": temperature, "top_p": top_p}
            torch.manual_seed(seed)
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0

    @property
    def history(self) -> list[dict[str, str]]:
        """The whole of it, the system prompt first where there is one."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.messages]

    def resume(self, history: Sequence[dict[str, str]], place: str = "the history") -> None:
        """Go on from an earlier conversation, its system prompt included.

        Raises:
            DataError: it is no such history.
        """
        if history:
            check_turns(place, list(history))
            first = history[0]
            self.system = first["content"] if first["role"] == "system" else self.system
        self.messages = [dict(one) for one in history if one["role"] != "system"]

    def reset(self) -> None:
        """Begin anew under the same system prompt."""
        self.messages, self.forgotten = [], 0

    def say(self, text: str, tell: Callable[[str], None] | None = None) -> str:
        """The answer to what a user says; both are then part of the history.

        Args:
            tell: is given the answer's pieces as they are written.

        Raises:
            DataError: nothing is said, or the model's context has no room for it and an answer.
        """
        if not text.strip():
            raise DataError("there is nothing to answer: the message is empty.")
        ids = self._read([*self.messages, {"role": "user", "content": text}])
        streamer = None if tell is None else _streamer(self.tokenizer, tell)
        with evaluating(self.model) as device:
            prompt = torch.tensor([ids], device=device)
            written = self.model.generate(  # type: ignore[operator]
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                eos_token_id=end_tokens(self.model, self.tokenizer),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                streamer=streamer,
                **self.settings,
            )
        answer = self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True).strip()
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return answer

    def _read(self, messages: list[dict[str, str]]) -> list[int]:
        """Tokens of the prompt; the oldest turns are left out where the context has no room for them."""
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.forgotten = 0
        while True:
            text = rendered(self.tokenizer, [*system, *messages[self.forgotten :]], answering=True)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if limit is None or len(ids) + self.settings["max_new_tokens"] <= limit:
                return ids
            if self.forgotten + 2 >= len(messages):
                raise DataError(
                    f"the message has {len(ids)} tokens with what stands before it, and answers up to {self.settings['max_new_tokens']}; the model reads "
                    f"{limit} in all.\n  Say it in fewer words, or lower max_new_tokens."
                )
            self.forgotten += 2


def _streamer(tokenizer: Any, tell: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    streamer: Any = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = _Pieces(tell)
    return streamer


class _Pieces:
    """Hands on an answer's words as they are finished, without the space before the first."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell, self.begun, self.held = tell, False, ""

    def __call__(self, text: str, stream_end: bool = False) -> None:
        text = self.held + text
        if not self.begun:
            text = text.lstrip()
        kept = text.rstrip()  # the space at the end is told once something follows
        self.held = text[len(kept) :]
        self.begun = self.begun or bool(kept)
        if kept:
            self.tell(kept)
