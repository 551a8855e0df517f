"""Hub data sets, with the hub's library in place of the hub."""

from __future__ import annotations

import datasets
import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


@pytest.fixture
def hub(monkeypatch):
    """Puts a data set, or an error, where the hub would be; returns what was asked of it."""

    def put(result):
        asked = []

        def load_dataset(*args, **options):
            asked.append((args, options))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return put


def table(count, features=None):
    content = {"sentence": [f"s{i}" for i in range(count)], "y": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(content, features=features)


def test_splits_names_and_class_labels(hub):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    asked = hub(datasets.DatasetDict({"train": table(20, features), "dev": table(4, features)}))
    splits = load_splits(
        "owner/set", config="plain", revision="main", columns={"text": "sentence", "label": "y"}
    )
    assert asked == [(("owner/set", "plain"), {"revision": "main"})]
    assert {k: len(s) for k, s in splits.items()} == {"train": 20, "validation": 4}
    assert splits["train"].rows.features["label"].names == ["no", "yes"]
    assert splits["validation"].where(3) == "owner/set, dev row 3"


def test_named_splits(hub):
    hub(datasets.DatasetDict({"train": table(20), "validation_matched": table(4)}))
    splits = load_splits("mnli", train="train", validation="validation_matched")
    assert len(splits["validation"]) == 4
    with pytest.raises(
        DataError,
        match=r"data\.validation='validation_match'.* Did you mean 'validation_matched'\? It has: train",
    ):
        load_splits("mnli", train="train", validation="validation_match")


def test_sounds_stay_bytes(hub, tmp_path):
    """Decoding them by the hub's library would need torchcodec."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adaptome.data.sound import Sounds

    content = [{"bytes": b"RIFF", "path": f"{i}.wav"} for i in range(4)]
    pq.write_table(pa.table({"audio": content, "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    hub(datasets.DatasetDict({"train": rows.cast_column("audio", datasets.Audio())}))
    splits = load_splits("owner/sounds", files="audio", validation_fraction=0.25)
    assert {k: len(s) for k, s in splits.items()} == {"train": 3, "validation": 1}
    assert all(sound["bytes"] == b"RIFF" for sound in Sounds(splits["train"].rows))
    with pytest.raises(DataError, match="a hub data set brings its files itself"):
        load_splits("owner/sounds", files="audio", paths="{audio}")


def test_empty_splits_are_told(hub):
    hub(datasets.DatasetDict({"train": table(0)}))
    with pytest.raises(DataError, match="mnli: the train split is empty"):
        load_splits("mnli")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionError("offline"), "could not be loaded: offline\n  Without network, give local files"),
        (ValueError("BuilderConfig 'x' not found"), "BuilderConfig 'x' not found"),
        (datasets.exceptions.DatasetNotFoundError("gone"), "no such data set on the hub"),
    ],
)
def test_failures_say_what_to_do(hub, error, text):
    hub(error)
    with pytest.raises(DataError) as caught:
        load_splits("owner/set")
    assert "data.name='owner/set': no file or folder of that name here" in str(caught.value)
    assert text in str(caught.value)
