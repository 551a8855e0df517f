"""Sound and pictures of clips: videos, arrays, features, mouths by boxes and landmarks, and what is refused."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from adaptome.core.errors import DataError
from adaptome.data.makers.speech import packed
from adaptome.data.speech.clips import (
    Frames,
    at_rate,
    has_sound,
    mouths,
    read_features,
    read_frames,
    read_mouth,
    read_sound,
    sound_seconds,
    video_seconds,
)


def video(path: Path, pictures: np.ndarray, sound: np.ndarray | None = None, fps: int = 25) -> Path:
    """A video of grey pictures, with sound at 16 kHz or without."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = pictures.shape[1:]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        track = None if sound is None else out.add_stream("aac", rate=16_000)
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), format="rgb24")))
        out.mux(stream.encode())
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            out.mux(track.encode(frame))
            out.mux(track.encode())
    return path


def moving(frames: int = 20, side: int = 32) -> np.ndarray:
    """A bright square that goes from left to right."""
    made = np.full((frames, side, side), 30, np.uint8)
    for t in range(frames):
        made[t, 8:24, t : t + 8] = 220
    return made


TONE = 0.3 * np.sin(2 * np.pi * 440 * np.arange(12_800) / 16_000)


def test_a_videos_pictures_and_sound(tmp_path):
    pictures = moving()
    file = video(tmp_path / "a.mp4", pictures, TONE)
    frames = read_frames(str(file), "here")
    assert frames.fps == 25 and frames.pictures.shape == pictures.shape
    assert np.abs(frames.pictures.astype(int) - pictures).mean() < 8
    samples, rate = read_sound(str(file), "here")
    assert rate == 16_000 and abs(len(samples) - len(TONE)) < 2_100  # the codec's frames
    peak = np.abs(np.fft.rfft(samples[2000:10_000])).argmax() * 16_000 / 8_000
    assert peak == pytest.approx(440, abs=4)
    assert video_seconds(str(file), "here") == pytest.approx(0.8, abs=0.01)
    assert sound_seconds(str(file), "here") == pytest.approx(0.8, abs=0.15)
    assert has_sound(file) and has_sound(tmp_path / "a.wav")


def test_a_video_without_sound_says_what_to_do(tmp_path):
    file = video(tmp_path / "mute.mp4", moving())
    assert not has_sound(file)
    for read in (read_sound, sound_seconds):
        with pytest.raises(
            DataError, match=r"no track of sound. Read the lips alone: task.modalities=\[video\]"
        ):
            read(str(file), "here")


def test_pictures_as_arrays_at_any_rate(tmp_path):
    pictures = moving()
    assert np.array_equal(read_frames({"bytes": packed(pictures), "path": None}, "x").pictures, pictures)
    np.savez(tmp_path / "fast.npz", frames=pictures, fps=50.0)
    frames = read_frames(tmp_path / "fast.npz", "x")
    assert np.array_equal(at_rate(frames), pictures[::2]) and video_seconds(tmp_path / "fast.npz", "x") == 0.4
    assert len(at_rate(Frames(pictures, 12.5))) == 40
    np.savez(tmp_path / "wrong.npz", frames=pictures.astype(float))
    with pytest.raises(DataError, match=r"uint8 \[time, height, width\]; found float64 \[20, 32, 32\]"):
        read_frames(tmp_path / "wrong.npz", "x")


def test_mouths_by_boxes_and_landmarks(tmp_path):
    pictures = Frames(moving(), 25.0)
    boxes = [[t, 8, t + 8, 16] for t in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"boxes": boxes}))
    (tmp_path / "a.csv").write_text("x0,y0,x1,y1\n" + "\n".join(",".join(map(str, box)) for box in boxes))
    for name in ("a.json", "a.csv"):
        cut = mouths(pictures, read_mouth(tmp_path / name, 20, "x"), 8).pictures
        assert cut.shape == (20, 8, 8) and (cut == 220).all()  # it goes with the square
    face = np.zeros((20, 68, 2))
    face[:, 48:68, 0] = np.linspace(10, 18, 20)
    face[:, 48:68, 1] = 16
    np.savez(tmp_path / "a.npz", landmarks=face)
    assert read_mouth(tmp_path / "a.npz", 20, "x")[0] == pytest.approx(
        [6, 8, 22, 24]
    )  # twice as wide as the mouth
    assert mouths(pictures, None, 16).pictures.shape == (20, 16, 16)
    (tmp_path / "short.json").write_text(json.dumps(boxes[:3]))
    with pytest.raises(DataError, match=r"short.json: boxes \[3, 4\] for 20 pictures"):
        read_mouth(tmp_path / "short.json", 20, "x")
    (tmp_path / "odd.json").write_text(json.dumps([[5, 5, 4, 9]]))
    with pytest.raises(DataError, match="x0 < x1"):
        read_mouth(tmp_path / "odd.json", 20, "x")


def test_features_from_files_of_numbers_and_never_from_a_pickle(tmp_path):
    from safetensors.numpy import save_file

    values = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", features=values, other=values[:1])
    save_file({"x": values}, tmp_path / "a.safetensors")
    for ending in ("npy", "npz", "safetensors"):
        assert np.array_equal(read_features(tmp_path / f"a.{ending}", 6, "x"), values)
    with pytest.raises(DataError, match=r"features must be \[time, 5\]; found \[7, 6\]"):
        read_features(tmp_path / "a.npy", 5, "x")
    np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_features(tmp_path / "b.npy", 6, "x")
    for ending in ("npy", "npz", "safetensors"):  # torn ones
        (tmp_path / f"c.{ending}").write_bytes((tmp_path / f"a.{ending}").read_bytes()[:60])
        with pytest.raises(DataError, match=rf"c.{ending} cannot be read as arrays"):
            read_features(tmp_path / f"c.{ending}", 6, "x")


def test_files_that_are_not_there_or_no_video(tmp_path):
    soundfile.write(tmp_path / "one.wav", TONE, 16_000)
    with pytest.raises(DataError, match=r"row 3: no file .*onee.wav. Near names: one.wav"):
        read_sound(str(tmp_path / "onee.wav"), "row 3")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be read as a video"):
        read_frames(str(tmp_path / "torn.mp4"), "x")
