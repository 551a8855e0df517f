"""Texts of the standard library as data of recipes."""

from adaptome.data import load_splits
from adaptome.data.makers import stdlib_texts
from adaptome.data.stdlib_docstrings import DocstringTask, Example


def test_sources_are_whole_lines_of_modules_that_no_other_split_has():
    splits = load_splits("made:sources", split_seed=1)
    texts = {name: split.rows["text"] for name, split in splits.items()}
    assert len(texts["train"]) > 1000 and len(texts["test"]) > 100
    assert any("def heappush" in text for text in texts["validation"])
    assert not any("def heappush" in text for text in [*texts["train"], *texts["test"]])
    assert sum(len(text) <= stdlib_texts.PIECE for text in texts["train"]) > 0.95 * len(texts["train"])
    assert all(text.strip() for text in texts["train"])
    source = stdlib_texts._source("heapq")
    assert "".join(stdlib_texts._pieces(source)).split() == source.split()
    assert load_splits("made:sources", split_seed=1)["test"].rows["text"] == texts["test"]
    assert load_splits("made:sources", split_seed=2)["test"].rows["text"] != texts["test"]


def test_docstrings_keep_the_splits_of_their_task(monkeypatch):
    examples = tuple(Example(f"Return [MASK] {i}.", i % 2, f"m:{i}") for i in range(6))
    task = DocstringTask(("ast", "csv"), examples[:3], examples[3:5], examples[5:])
    monkeypatch.setattr(stdlib_texts, "docstring_task", lambda: task)
    splits = load_splits("made:docstrings")
    assert {name: list(split.rows["text"]) for name, split in splits.items()} == {
        "train": [e.text for e in task.train],
        "validation": [e.text for e in task.validation],
        "test": [e.text for e in task.test],
    }
    assert list(splits["train"].rows["label"]) == ["ast", "csv", "ast"]
