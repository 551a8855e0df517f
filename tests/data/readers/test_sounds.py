"""Sound folders and archives of clips."""

from __future__ import annotations

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.sound import Sounds
from tests.sounds import archive, chirp, class_folders, write


def counts(splits):
    return {name: len(split) for name, split in splits.items()}


def test_class_folders_are_split_and_named(tmp_path):
    splits = load_splits(class_folders(tmp_path / "s"), validation_fraction=0.25)
    assert counts(splits) == {"train": 9, "validation": 3}
    assert set(splits["train"].rows["label"][:]) == {"up", "down"}
    assert splits["train"].where(0).startswith(f"{tmp_path}/s/down/")
    assert Sounds(splits["train"].rows)[0] == {"bytes": None, "path": splits["train"].where(0)}


def test_the_split_does_not_depend_on_where_the_folder_is(tmp_path):
    chosen = []
    for place in ("here", "there/deeper"):
        held = load_splits(class_folders(tmp_path / place), validation_fraction=0.3)["validation"]
        chosen.append([held.where(i).removeprefix(str(tmp_path / place)) for i in range(len(held))])
    assert chosen[0] == chosen[1]


def test_split_folders_and_folders_split_by_split(tmp_path):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "all" / split, each=2)
    assert counts(load_splits(str(tmp_path / "all"))) == {"train": 4, "validation": 4, "test": 4}
    given = {k: str(tmp_path / "all" / k) for k in ("train", "test")}
    assert counts(load_splits(**given, validation_fraction=0)) == {"train": 4, "test": 4}


def test_speech_commands_lists_name_the_splits(tmp_path):
    class_folders(tmp_path, each=4)
    write(tmp_path / "_background_noise_" / "hum.wav", chirp(0))
    (tmp_path / "validation_list.txt").write_text("up/0.wav\ndown/0.wav\n")
    (tmp_path / "testing_list.txt").write_text("up/1.wav\r\n")
    splits = load_splits(str(tmp_path))
    assert counts(splits) == {"train": 5, "validation": 2, "test": 1}
    assert splits["test"].where(0).endswith("up/1.wav")
    assert "_background_noise_" not in splits["train"].rows["label"][:]


def test_folders_without_sounds_are_told(tmp_path):
    with pytest.raises(DataError, match=r"no train\.\* file and no class folders of images or sounds"):
        load_splits(str(tmp_path))
    with pytest.raises(DataError, match="no class folders; expected one subfolder of sounds per class"):
        load_splits(str(tmp_path), format="audiofolder")
    class_folders(tmp_path, each=1)
    (tmp_path / "silence").mkdir()
    with pytest.raises(DataError, match=r"silence: no sounds\. Endings read: \.aif"):
        load_splits(str(tmp_path))


def test_samples_and_offsets_become_clips(tmp_path):
    splits = load_splits(archive(tmp_path / "a.npz", [0, 1, 1]))
    assert counts(splits) == {"train": 3, "validation": 3}
    clip = Sounds(splits["train"].rows)[2]
    assert clip["sampling_rate"] == 8000 and clip["array"].dtype == np.int16
    assert np.array_equal(clip["array"], (chirp(1, seed=2) * 32767).astype(np.int16))
    assert splits["train"].rows.features["label"].names == ["down", "up"]


def test_one_array_of_clips_is_split(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        samples=np.arange(40, dtype=np.int16), offsets=np.arange(0, 41, 4), y=np.arange(10) % 2, sampling_rate=10,
    )  # fmt: skip
    splits = load_splits(str(tmp_path / "a.npz"), validation_fraction=0.2)
    assert counts(splits) == {"train": 8, "validation": 2}
    assert {len(sound["array"]) for sound in Sounds(splits["train"].rows)} == {4}


def test_archives_that_do_not_fit_are_told(tmp_path):
    def message(**changes):
        archive(tmp_path / "a.npz", [0, 1], **changes)
        held = dict(np.load(tmp_path / "a.npz"))
        held = {k: v for k, v in {**held, **changes}.items() if v is not None}
        np.savez(tmp_path / "a.npz", **held)
        with pytest.raises(DataError) as caught:
            load_splits(str(tmp_path / "a.npz"))
        return str(caught.value)

    held = dict(np.load(archive(tmp_path / "b.npz", [0, 1])))
    del held["sample_rate"]
    np.savez(tmp_path / "b.npz", **held)
    with pytest.raises(DataError, match="samples without their rate; add the number sample_rate"):
        load_splits(str(tmp_path / "b.npz"))
    assert "offsets of the train split are to be whole numbers that rise" in message(
        train_offsets=np.array([0, 9, 3])
    )
    assert "to the 6400 samples" in message(train_offsets=np.array([0, 9, 9999]))
    assert "differ in length: y_train 3, clips_train 2" in message(train_y=np.array([0, 1, 1]))
