"""`adaptome chat`: talk to a finished run."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.core.errors import DataError, did_you_mean

EXAMPLES = """Examples:

adaptome chat runs/adviser

adaptome chat runs/adviser --system "Answer in two sentences." --temperature 0.7

echo "Which papers does a master in Aldora need?" | adaptome chat runs/adviser

adaptome chat runs/adviser --history talk.json --json < questions.txt

adaptome chat runs/adviser --base
"""

COMMANDS = {"/help": "this list", "/history": "what was said", "/reset": "begin anew", "/system": "change the system prompt: /system TEXT", "/exit": "leave; so does the end of input"}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("chat", epilog=EXAMPLES)(chat)


def chat(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    system: Annotated[
        str | None, typer.Option(help="System prompt; default: the run's, where its task has one.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Chat template where the tokenizer has none: human-assistant, or a Jinja file."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer, at most; default: the run's.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: the likeliest token each time; above: tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest with so much together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    base: Annotated[
        bool, typer.Option("--base", help="Talk to the base, without the run's adapters.")
    ] = False,
    history: Annotated[
        Path | None, typer.Option(help="Go on from the messages in this JSON file, and keep them there.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every answer as a JSON line, whole.")] = False,
) -> None:
    """Talk to a finished run: answers as they are written, in the run's own chat template. Every line of a pipe is a turn."""
    import adaptome as ad
    from adaptome.tasks.chat_templates import set_template
    from adaptome.tasks.conversation import Conversation
    from adaptome.training import load_run

    loaded = load_run(run)
    set_template(loaded.processor, template, "--template")
    options: Any = loaded.task.options
    size: int = getattr(options, "max_new_tokens", 256) if max_new_tokens is None else max_new_tokens
    talk = Conversation(
        loaded.model, loaded.processor, system if system is not None else getattr(options, "system", None),
        max_new_tokens=size, temperature=temperature, top_p=top_p, seed=seed,
    )  # fmt: skip
    if history is not None and history.is_file():
        talk.resume(_read(history), str(history))
    if base:
        with ad.disabled(loaded.model):
            _converse(talk, history, json)
    else:
        _converse(talk, history, json)


def _converse(talk: Any, history: Path | None, json: bool) -> None:
    """Turn by turn, until the input ends."""
    there = sys.stdin.isatty()
    if there:
        print("Say something; /help tells what else there is.", file=sys.stderr)
    for line in _lines(there):
        if line.startswith("/"):
            if _command(talk, line):
                break
            continue
        _turn(talk, line, json, there)
        if history is not None:
            from adaptome.core.files import write_atomic

            write_atomic(history, json_.dumps(talk.history, ensure_ascii=False, indent=1))


def _turn(talk: Any, line: str, json: bool, there: bool) -> None:
    """One message and its answer; of someone at a terminal, an interruption ends the answer alone."""
    tell: Callable[[str], None] | None = None if json else lambda text: print(text, end="", flush=True)
    try:
        answer = talk.say(line, tell)
    except KeyboardInterrupt:
        if not there:
            raise
        print("\n(not kept)", file=sys.stderr)
        return
    except DataError as error:
        if not there:
            raise
        print(error, file=sys.stderr)
        return
    print(json_.dumps({"role": "assistant", "content": answer}, ensure_ascii=False) if json else "")
    if talk.forgotten:
        print(f"(the first {talk.forgotten} messages no longer fit the model's context)", file=sys.stderr)


def _command(talk: Any, line: str) -> bool:
    """Carry out a command; whether it ends the conversation."""
    name, _, rest = line.partition(" ")
    if name == "/exit":
        return True
    if name == "/reset":
        talk.reset()
    elif name == "/system":
        talk.system = rest.strip() or None
    elif name == "/history":
        for message in talk.history:
            print(f"{message['role']}: {message['content']}")
    elif name == "/help":
        print("\n".join(f"{key}  {what}" for key, what in COMMANDS.items()), file=sys.stderr)
    else:
        print(f"{name} is no command.{did_you_mean(name, COMMANDS)} There are: {', '.join(COMMANDS)}.", file=sys.stderr)  # fmt: skip
    return False


def _lines(there: bool) -> Iterator[str]:
    """What is said, line by line; with prompt_toolkit's editing at a terminal where it is installed."""
    if not there:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    ask = _asker()
    while True:
        try:
            line = ask().strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if line:
            yield line


def _asker() -> Callable[[], str]:
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        return lambda: input("you> ")
    session: Any = PromptSession()
    return lambda: str(session.prompt("you> "))


def _read(file: Path) -> list[dict[str, str]]:
    try:
        found = json_.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json_.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read as a history: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{file} holds no history: expected a list of messages with role and content.")
    return found
