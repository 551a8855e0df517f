"""Chats as the text that a model is trained on and asked with: one template for both, the tokenizer's own or one that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError, RecipeError, did_you_mean

#: templates that need no file, by name
WITHOUT_FILES = {
    # plain lines (a line's end right after a block would be trimmed); each answer ends with the tokenizer's end-of-sequence token
    "human-assistant": (
        "{% for m in messages %}{% if m.role == 'assistant' %}Assistant: {{ m.content }}{{ eos_token }}"
        "{% elif m.role == 'system' %}{{ m.content }}{% else %}Human: {{ m.content }}{% endif %}"
        "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
}
Chat = Sequence[Mapping[str, Any]]


def set_template(tokenizer: Any, asked: str | None, key: str = "task.chat_template") -> None:
    """Give the tokenizer the template that is asked for: a name of `WITHOUT_FILES`, or a Jinja file.

    Raises:
        RecipeError: there is no such name or file.
    """
    if asked is None:
        return
    if asked in WITHOUT_FILES:
        tokenizer.chat_template = WITHOUT_FILES[asked]
        return
    file = Path(asked)
    if not file.is_file():
        raise RecipeError(
            f"{key}={asked!r}: no such file, and no template of this name.{did_you_mean(asked, WITHOUT_FILES)} Named ones: {', '.join(WITHOUT_FILES)}."
        )
    tokenizer.chat_template = file.read_text(encoding="utf-8")


def require_template(tokenizer: Any, name: Any) -> None:
    """Raise RecipeError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            f"the tokenizer {name!r} has no chat template.\n"
            f"  Name an instruction-tuned model's, or a template: task.chat_template, a Jinja file or {', '.join(WITHOUT_FILES)}."
        )


def rendered(tokenizer: Any, chat: Chat, answering: bool = False) -> str:
    """The chat as one text, with its special tokens.

    A system prompt goes before the first user's message where the template knows no such role.

    Args:
        answering: end where the assistant's answer begins.

    Raises:
        DataError: the template refuses the chat; says why.
    """
    import jinja2

    told: dict[str, Any] = {"tokenize": False, "add_generation_prompt": answering}
    messages = [dict(message) for message in chat]
    try:
        return str(tokenizer.apply_chat_template(messages, **told))
    except jinja2.TemplateError as error:
        if messages and messages[0]["role"] == "system" and len(messages) > 1:
            system, first, *rest = messages
            joined = {**first, "content": f"{system['content']}\n\n{first['content']}"}
            return rendered(tokenizer, [joined, *rest], answering)
        raise DataError(f"the chat template refuses the dialogue: {error}") from error


def answer_spans(tokenizer: Any, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
    """The whole text, and where in it each of the assistant's answers stands, its end-of-sequence token included.

    Raises:
        RecipeError: the template writes earlier turns in another way once later ones follow, or ends answers with no end-of-sequence token.
    """
    whole, end = rendered(tokenizer, chat), str(tokenizer.eos_token)
    spans = []
    for i, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before, after = rendered(tokenizer, chat[:i], answering=True), rendered(tokenizer, chat[: i + 1])
        at = after.rfind(end)
        if not after.startswith(before) or not whole.startswith(after[: at + len(end)]):
            raise RecipeError(
                "the chat template writes a turn in another way once others follow, so a model would be trained on other texts than it is asked with.\n"
                "  Train on the whole text (task.train_on_inputs=true), or give another task.chat_template."
            )
        if at < len(before):
            raise RecipeError(
                f"the chat template ends answers without the end-of-sequence token {end!r}: a model could not learn where to stop.\n"
                "  Give another task.chat_template, or the tokenizer that belongs to the model."
            )
        spans.append((len(before), at + len(end)))
    return whole, spans
