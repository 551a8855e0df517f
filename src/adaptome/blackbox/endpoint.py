"""An HTTP endpoint with OpenAI's interface, through its client: embeddings, or the likeliest next words alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adaptome.blackbox.base import BLACK_BOXES, BlackBox, BlackBoxSettings
from adaptome.core.errors import BlackBoxError, MissingExtraError

#: tokens whose log-probabilities an endpoint tells at most
TOP = 20


class EndpointSettings(BlackBoxSettings):
    model: str = Field(description="what the endpoint calls it")
    base_url: str | None = Field(default=None, description="of the endpoint; default: the client's own")
    key_env: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")
    output: Literal["states", "logits"] = Field(
        default="states",
        description="an embedding of the text; or log-probabilities of `words` as the next one",
    )
    words: list[str] = Field(default_factory=list, description="of logits: the words that are asked for")
    prompt: str = Field(
        default="{text}\n\nIn one word, this is about", description="of logits: what is asked, with {text}"
    )
    timeout: float = Field(default=60, gt=0, description="seconds")
    retries: int = Field(default=4, ge=0, description="of a request that failed for a passing reason")

    @model_validator(mode="after")
    def _words(self) -> EndpointSettings:
        if self.output == "logits" and not self.words:
            raise ValueError("output=logits needs words, such as those of the labels' descriptions")
        return self


def client_of(base_url: str | None, key_env: str, timeout: float, retries: int) -> Any:
    """OpenAI's client for an endpoint.

    Raises:
        MissingExtraError: it is not installed. BlackBoxError: the key is missing.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("openai", "endpoint") from error
    key = os.environ.get(key_env)
    if not key and base_url is None:
        raise BlackBoxError(
            f"the environment variable {key_env} holds no key for the endpoint. Set it, or name another: key_env."
        )
    return openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=retries)


def answered(ask: Any, what: str, **given: Any) -> Any:
    """A client's answer, its errors told as ours.

    Raises:
        BlackBoxError: the endpoint does not answer, or says no.
    """
    import openai

    try:
        return ask(**given)
    except openai.OpenAIError as error:
        status = getattr(error, "status_code", None)
        raise BlackBoxError(
            f"the endpoint gave no {what}{f' (status {status})' if status else ''}: {error}"
        ) from error


@BLACK_BOXES.register("endpoint")
class Endpoint(BlackBox):
    """Embeddings [1, d]: with one vector for a text the attention is a projection. Or log-probabilities [1, words]."""

    Settings = EndpointSettings
    aside = ("batch_size", "timeout", "retries", "key_env")

    @cached_property
    def client(self) -> Any:
        told = self.settings
        return client_of(told.base_url, told.key_env, told.timeout, told.retries)

    def states(self, texts: Sequence[str]) -> list[Tensor]:
        if self.settings.output == "logits":
            return [self._words(text) for text in texts]
        made = answered(
            self.client.embeddings.create, "embedding", model=self.settings.model, input=list(texts)
        )
        rows = sorted(made.data, key=lambda one: one.index)
        return [torch.tensor(one.embedding)[None] for one in rows]

    def _words(self, text: str) -> Tensor:
        """Log-probabilities [1, words]; a word that is not among the likeliest has the least of these."""
        asked = [{"role": "user", "content": self.settings.prompt.format(text=text)}]
        made = answered(
            self.client.chat.completions.create, "answer", model=self.settings.model, messages=asked, max_tokens=1,
            temperature=0, logprobs=True, top_logprobs=TOP,
        )  # fmt: skip
        told = made.choices[0].logprobs if made.choices else None
        if told is None or not told.content:
            raise BlackBoxError(
                f"the endpoint tells no log-probabilities for {self.settings.model}. Take output=states."
            )
        top = [(one.token.strip().casefold(), one.logprob) for one in told.content[0].top_logprobs]
        least = min(value for _, value in top)
        found = [
            max((value for token, value in top if token and word.casefold().startswith(token)), default=least)
            for word in self.settings.words
        ]
        return torch.tensor(found)[None]
