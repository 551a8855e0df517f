"""Generators that show a language model the class's description and examples and have it write more (in-context generation)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from adaptome.blackbox.endpoint import answered, client_of
from adaptome.blackbox.generators.base import GENERATORS, Generator, GeneratorSettings
from adaptome.core.errors import BlackBoxError

PROMPT = """{instruction}

Class: {label}
It means: {description}

Examples of the class:
{examples}

Write {count} new texts of this class, unlike each other and unlike the examples. One on each line, numbered, nothing else."""

_NUMBER = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")


class PromptedSettings(GeneratorSettings):
    instruction: str = Field(
        default="You write training texts for a text classifier.", description="what the model is told first"
    )
    at_once: int = Field(default=10, ge=1, description="texts that one answer is asked for")
    demonstrations: int = Field(default=8, ge=1, description="examples that a prompt shows")
    temperature: float = Field(default=1.0, ge=0)
    max_new_tokens: int = Field(default=1024, ge=1, description="of one answer")


class Prompted(Generator):
    """Asks until there are enough texts, a few at once; a subclass says how one prompt is answered."""

    Settings: ClassVar[type[GeneratorSettings]] = PromptedSettings

    def answer(self, prompt: str, seed: int) -> str:
        """What the model writes."""
        raise TypeError(f"{type(self).__name__} answers no prompt.")

    def texts(
        self, label: str, description: str, demonstrations: Sequence[str], count: int, seed: int
    ) -> list[str]:
        told, draw, made = self.settings, random.Random(f"{seed} {label}"), list[str]()
        for number in range(-(-count // told.at_once)):
            shown = draw.sample(list(demonstrations), min(told.demonstrations, len(demonstrations)))
            prompt = PROMPT.format(
                instruction=told.instruction, label=label, description=description or label,
                examples="\n".join(f"- {' '.join(text.split())}" for text in shown), count=told.at_once,
            )  # fmt: skip
            made += lines_of(self.answer(prompt, seed + number))
        return made[:count]


def lines_of(answer: str) -> list[str]:
    """The texts of an answer, without their numbers and quotation marks; numbered lines alone where there are such."""
    lines = [line for line in answer.splitlines() if line.strip()]
    numbered = [line for line in lines if _NUMBER.match(line)]
    return [text for line in numbered or lines if (text := _NUMBER.sub("", line).strip().strip('"').strip())]


class EndpointWriterSettings(PromptedSettings):
    model: str = Field(description="what the endpoint calls it")
    base_url: str | None = Field(default=None, description="of the endpoint; default: the client's own")
    key_env: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")
    timeout: float = Field(default=120, gt=0, description="seconds")
    retries: int = Field(default=4, ge=0, description="of a request that failed for a passing reason")


@GENERATORS.register("endpoint")
class EndpointWriter(Prompted):
    """A chat model behind OpenAI's interface."""

    Settings = EndpointWriterSettings

    @cached_property
    def client(self) -> Any:
        told = self.settings
        return client_of(told.base_url, told.key_env, told.timeout, told.retries)

    def answer(self, prompt: str, seed: int) -> str:
        told = self.settings
        made = answered(
            self.client.chat.completions.create, "text", model=told.model, temperature=told.temperature, seed=seed,
            max_tokens=told.max_new_tokens, messages=[{"role": "user", "content": prompt}],
        )  # fmt: skip
        return str(made.choices[0].message.content or "") if made.choices else ""


class LocalWriterSettings(PromptedSettings):
    model: str = Field(description="hub id or folder of a causal language model")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    top_p: float = Field(default=0.95, gt=0, le=1)


@GENERATORS.register("local")
class LocalWriter(Prompted):
    """A causal language model on this machine, by its chat template where it has one."""

    Settings = LocalWriterSettings

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = {"revision": self.settings.revision}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.settings.model, **source)
            model = AutoModelForCausalLM.from_pretrained(self.settings.model, **source).eval()
        except (OSError, ValueError) as error:
            raise BlackBoxError(
                f"augmentation.generator.model={self.settings.model!r} cannot be had: {error}"
            ) from error
        return tokenizer, model

    def answer(self, prompt: str, seed: int) -> str:
        import torch

        (tokenizer, model), told = self._loaded, self.settings
        chat = bool(getattr(tokenizer, "chat_template", None))
        if chat:
            asked = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        batch = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).to(model.device)
        drawn = (
            {"do_sample": True, "temperature": told.temperature, "top_p": told.top_p}
            if told.temperature
            else {"do_sample": False}
        )
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            found = model.generate(
                **batch,
                max_new_tokens=told.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                **drawn,
            )
        return str(tokenizer.decode(found[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
