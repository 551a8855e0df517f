"""Layouts of speech: LRS's folders and lists, LibriSpeech, auto-avsr's lists, and what is missing in them."""

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.readers import ReadOptions
from adaptome.data.readers.speech import read_auto_avsr, read_speech, words

OPTIONS = ReadOptions()


@pytest.fixture
def lrs(tmp_path):
    for name in (
        "main/a/1.mp4",
        "main/a/1.txt",
        "main/a/2.mp4",
        "main/a/2.wav",
        "main/a/2.txt",
        "main/a/2.mouth.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(
            "Text:  HELLO WORLD\nConf:  4\n" if name.endswith("1.txt") else "good day"
        )
    (tmp_path / "train.txt").write_text("a/2\n")
    (tmp_path / "test.txt").write_text("a/1 NF\n")
    return tmp_path


def test_folders_and_lists_of_lrs(lrs):
    found = read_speech(lrs / "main", OPTIONS).columns
    main = lrs / "main" / "a"
    assert found["text"] == ["HELLO WORLD", "good day"]
    assert found["audio"] == [str(main / "1.mp4"), str(main / "2.wav")]  # its own track; the sound beside
    assert found["video"] == [str(main / "1.mp4"), str(main / "2.mp4")]
    assert found["mouth"] == [None, str(main / "2.mouth.json")]
    splits = load_splits(
        train=str(lrs / "train.txt"), test=str(lrs / "test.txt"), format="speech", validation_fraction=0
    )
    assert {name: list(split.rows["text"]) for name, split in splits.items()} == {"train": ["good day"], "test": ["HELLO WORLD"]}  # fmt: skip
    assert splits["train"].where(0).endswith("train.txt, line 1")


def test_librispeech(tmp_path):
    folder = tmp_path / "84" / "121"
    folder.mkdir(parents=True)
    for n in (0, 1):
        (folder / f"84-121-000{n}.flac").touch()
    (folder / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT\n")
    found = read_speech(tmp_path, OPTIONS)
    assert found.columns == {"audio": [str(folder / f"84-121-000{n}.flac") for n in (0, 1)], "text": ["GO DO YOU HEAR", "BUT"]}  # fmt: skip
    (folder / "84-121.trans.txt").write_text("84-121-0007 BUT\n")
    with pytest.raises(DataError, match="line 1: no sound 84-121-0007"):
        read_speech(tmp_path, OPTIONS)


def test_lists_of_auto_avsr(lrs):
    (lrs / "train.csv").write_text("main,a/2.mp4,75,,good day, sir\n")
    assert read_auto_avsr(lrs / "train.csv", OPTIONS).columns["text"] == ["good day, sir"]
    (lrs / "train.csv").write_text("main,a/2.mp4,75\n")
    with pytest.raises(DataError, match="found 3 parts"):
        read_auto_avsr(lrs / "train.csv", OPTIONS)
    (lrs / "train.csv").write_text("main,a/9.mp4,75,,x\n")
    with pytest.raises(DataError, match="no file a/9.mp4"):
        read_auto_avsr(lrs / "train.csv", OPTIONS)


def test_what_is_missing_is_named(lrs):
    (lrs / "main" / "a" / "1.txt").unlink()
    with pytest.raises(DataError, match=r"1\.mp4: no 1\.txt with its words"):
        read_speech(lrs / "main", OPTIONS)
    (lrs / "train.txt").write_text("a/7\n")
    with pytest.raises(DataError, match="line 1: no clip 'a/7'"):
        read_speech(lrs / "train.txt", OPTIONS)
    (lrs / "empty").mkdir()
    with pytest.raises(DataError, match="no clips with texts"):
        read_speech(lrs / "empty", OPTIONS)


def test_words_of_a_text_beside_a_clip():
    assert (
        words("Text:  A B\nConf: 3") == "A B"
        and words("just this\nand not that") == "just this"
        and words("") == ""
    )
