"""Black boxes: every text asked once, counted and kept; budgets, errors half-way, torn files; an endpoint's interface over HTTP."""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from adaptome.blackbox import Asked, Calling, get_black_box
from adaptome.blackbox.generators import get_generator
from adaptome.core.errors import BlackBoxError, DataError, RecipeError, TornFileError


class Counting:
    """Two numbers for each word; fails at texts that hold `bad`."""

    def __init__(self):
        self.texts, self.well = [], False

    def __call__(self, texts):
        self.texts += texts
        if not self.well and any("bad" in text for text in texts):
            raise BlackBoxError("the endpoint gave no answer (status 500)")
        return [[[len(word), ord(word[0]) / 128] for word in text.split()] for text in texts]


def asked(folder, function=None, **settings):
    return Asked(Calling(function or Counting(), "lengths", 2), folder, **settings)


def test_a_text_is_asked_once_and_kept(tmp_path):
    count = Counting()
    one = asked(tmp_path, count)
    one.ask(["a bb", "ccc", "a bb", "dd e f"])
    first = one.states("dd e f")
    assert count.texts == ["a bb", "ccc", "dd e f"] and one.calls == one.spent == 3
    assert first.shape == (3, 2) and first.dtype == torch.float16 and first.grad_fn is None
    again = asked(tmp_path, count)
    assert torch.equal(again.states("dd e f"), first) and (again.calls, again.spent) == (0, 3)
    other = Asked(Calling(count, "of another layer", 2), tmp_path)
    other.states("ccc")
    assert other.calls == 1 and len(count.texts) == 4


def test_a_budget_is_told_before_anything_is_asked(tmp_path):
    count = Counting()
    one = asked(tmp_path, count, budget=3)
    one.ask(["a", "b"])
    with pytest.raises(
        BlackBoxError, match=r"2 texts are to be asked, 2 calls were made before, and task.budget is 3"
    ):
        one.ask(["a", "c", "d"])
    assert count.texts == ["a", "b"]
    one.ask(["a", "c"])
    assert asked(tmp_path, count, budget=3).spent == 3


def test_an_error_loses_nothing(tmp_path):
    count, texts = Counting(), ["one", "two", "three", "bad", "five"]
    with pytest.raises(BlackBoxError, match=r"status 500\)\n  2 of 5 texts were answered and are kept"):
        asked(tmp_path, count).ask(texts)
    count.well, count.texts = True, []
    asked(tmp_path, count).ask(texts)
    assert count.texts == ["three", "bad", "five"]


def test_a_torn_file_is_named(tmp_path):
    one = asked(tmp_path)
    one.ask(["a", "b"])
    shard = next(one.store.folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(TornFileError, match="Delete it: what it held is asked again"):
        Asked(Calling(Counting(), "lengths", 2), tmp_path.parent / tmp_path.name)


@pytest.mark.parametrize("answer, told", [
    (lambda texts: [[1.0]], "gave 1 answers to 2 texts"),
    (lambda texts: [[[[1.0]]] for _ in texts], "of shape"),
    (lambda texts: [[1e9] for _ in texts], "task.keep=float32"),
])  # fmt: skip
def test_answers_that_are_none(answer, told, tmp_path):
    with pytest.raises(BlackBoxError, match=told):
        asked(tmp_path, answer).ask(["a", "b"])


def test_settings_are_checked():
    with pytest.raises(RecipeError, match="Did you mean 'local'"):
        get_black_box("locl")
    with pytest.raises(RecipeError, match="needs words"):
        get_black_box("local", output="logits")
    with pytest.raises(RecipeError, match="max_lenght"):
        get_black_box("local", max_lenght=3)


# -- a server with OpenAI's interface ------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(asked)
        status, answer = 200, {}
        if self.server.refuses:
            status, answer = 400, {"error": {"message": "no such model", "type": "invalid_request_error"}}
        elif self.path.endswith("/embeddings"):
            data = [
                {"object": "embedding", "index": i, "embedding": [len(t), 0.5, -1.0]}
                for i, t in enumerate(asked["input"])
            ]
            answer = {
                "object": "list",
                "model": "m",
                "data": data[::-1],
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
        else:
            top = [
                {"token": " Sport", "logprob": -0.1, "bytes": None},
                {"token": "art", "logprob": -2.5, "bytes": None},
            ]
            content = [{**top[0], "top_logprobs": top}] if asked.get("logprobs") else None
            text = '1. A goal in extra time.\n2) "The team won."\nDone!'
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{**choice, "logprobs": content and {"content": content}}]}  # fmt: skip
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen, made.refuses = [], False
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def where(server):
    pytest.importorskip("openai")
    return {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "retries": 0}


def test_embeddings_of_an_endpoint(where, server):
    box = get_black_box("endpoint", **where)
    found = box.states(["four", "sixsix"])
    assert [one.tolist() for one in found] == [[[4.0, 0.5, -1.0]], [[6.0, 0.5, -1.0]]]
    assert len(server.seen) == 1 and server.seen[0]["input"] == ["four", "sixsix"]


def test_likeliest_words_of_an_endpoint(where, server):
    box = get_black_box("endpoint", **where, output="logits", words=["sports", "arts", "money"])
    found = box.states(["a match"])
    assert found[0].shape == (1, 3)
    assert all(
        math.isclose(a, b, abs_tol=1e-6)
        for a, b in zip(found[0][0].tolist(), [-0.1, -2.5, -2.5], strict=True)
    )
    assert server.seen[0]["top_logprobs"] == 20 and "a match" in server.seen[0]["messages"][0]["content"]


def test_an_endpoint_that_says_no(where, server, tmp_path):
    server.refuses = True
    with pytest.raises(BlackBoxError, match=r"status 400.*no such model(.|\n)*0 of 1 texts were answered"):
        Asked(get_black_box("endpoint", **where), tmp_path).ask(["a"])


def test_an_endpoint_without_a_key(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BlackBoxError, match="OPENAI_API_KEY"):
        get_black_box("endpoint", model="m").states(["a"])


# -- generators -----------------------------------------------------------------------------------------------------------


def test_an_endpoint_writes(where, server):
    generator = get_generator("endpoint", **where, at_once=2)
    made = generator.texts("sports", "games of teams", ["They scored twice.", "A cup\nfinal."], 3, seed=4)
    assert made == ["A goal in extra time.", "The team won.", "A goal in extra time."]
    prompt = server.seen[0]["messages"][0]["content"]
    assert "games of teams" in prompt and "- A cup final." in prompt and len(server.seen) == 2


def test_a_file_of_texts(tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_text(
        '{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n{"text": "c", "label": "x"}\n'
    )
    generator = get_generator("file", path=str(path))
    assert generator.texts("x", "", [], 5, 0) == ["a", "c"] and generator.texts("z", "", [], 5, 0) == []
    path.write_text('{"text": "a", "label": "x"}\n{"text": 3')
    with pytest.raises(DataError, match="line 2"):
        get_generator("file", path=str(path)).texts("x", "", [], 5, 0)


def test_spliced_texts_are_of_the_examples():
    examples = [
        "One two three four. Five six seven eight.",
        "Ant bee cat dog; eel fox gnu hen.",
        "Alone it stands here",
    ]
    generator = get_generator("spliced")
    made = generator.texts("x", "", examples, 12, seed=0)
    words = {word for text in examples for word in text.split()}
    assert len(made) == 12 and all(set(text.split()) <= words for text in made)
    assert "One two three four. eel fox gnu hen." in made
    assert (
        made
        == generator.texts("x", "", examples, 12, seed=0)
        != generator.texts("x", "", examples, 12, seed=1)
    )
    assert generator.texts("x", "", examples[:1], 12, 0) == []
