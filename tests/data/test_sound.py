"""Reading sounds: formats, channels, rates, and files that cannot be trusted."""

from __future__ import annotations

import io

import numpy as np
import pytest

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.sound import decode, header, resampled
from tests.sounds import chirp, write

soundfile = pytest.importorskip("soundfile")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_every_format_gives_its_samples_and_rate(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", chirp(1))
    samples, rate = decode(path, path)
    assert header(path, path) == (3200, 8000)
    assert (samples.shape, samples.dtype, rate) == ((3200,), np.float32, 8000)
    tolerance = {"wav": 1e-4, "flac": 1e-4, "ogg": 0.1}[ending]
    assert np.abs(samples - chirp(1)).max() < tolerance


def test_channels_are_mixed_down(tmp_path):
    left, right = chirp(0), chirp(1)
    path = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    assert np.abs(decode(path, path)[0] - (left + right) / 2).max() < 1e-4
    both = {"array": np.stack([left, right], axis=1), "sampling_rate": 8000}
    assert np.allclose(decode(both, "x")[0], (left + right) / 2)


def test_bytes_and_arrays_are_sounds_too(tmp_path):
    path = write(tmp_path / "a.wav", chirp(1))
    expected, _ = decode(path, path)
    stored = {"path": "a.wav", "bytes": (tmp_path / "a.wav").read_bytes()}
    assert np.array_equal(decode(stored, "row 0")[0], expected)
    assert header(stored, "row 0") == (3200, 8000)
    whole = (chirp(1) * 32768).astype(np.int16)
    assert np.array_equal(decode({"array": whole, "sampling_rate": 8000}, "x")[0], whole / np.float32(32768))


def test_resampling_keeps_the_pitch():
    """A tone of 440 Hz is a tone of 440 Hz at every rate."""
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32)
    for rate in (16000, 44100, 6000):
        made = resampled(tone, 8000, rate)
        assert abs(len(made) - rate) <= 1 and made.dtype == np.float32
        peak = np.abs(np.fft.rfft(made)).argmax() * rate / len(made)
        assert abs(peak - 440) < 1.5
    assert resampled(tone, 8000, 8000) is tone


@pytest.mark.parametrize(
    ("ending", "kept", "told"),
    [
        ("wav", 0.5, "cut short: it ends before its header says"),
        ("wav", 0.004, "is not a sound that can be read"),
        ("flac", 0.5, "is not a sound that can be read"),
        ("ogg", 0.5, "is not a sound that can be read"),
        ("wav", 0, "is not a sound that can be read"),
    ],
)
def test_a_torn_file_is_found_by_its_header(tmp_path, ending, kept, told):
    path = tmp_path / f"torn.{ending}"
    write(path, chirp(1))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    for read in (header, decode):
        with pytest.raises(DataError, match=rf"torn\.{ending}.*{told}"):
            read(str(path), str(path))


def test_a_wav_written_to_a_pipe_is_no_torn_one(tmp_path):
    path = tmp_path / "pipe.wav"
    write(path, chirp(1))
    content = bytearray(path.read_bytes())
    at = content.index(b"data")
    content[at + 4 : at + 8] = b"\xff\xff\xff\xff"  # the writer could not know the size
    path.write_bytes(content)
    assert header(str(path), "x")[0] == 3200


def test_what_is_no_sound_is_told(tmp_path):
    (tmp_path / "note.wav").write_text("not a sound")
    write(tmp_path / "here.wav", chirp(0))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(800, np.nan, np.float32), 8000, subtype="FLOAT", format="WAV")
    for sound, told in (
        (str(tmp_path / "note.wav"), "note.wav is not a sound that can be read"),
        (str(tmp_path / "hear.wav"), "row 3: there is no file .*hear.wav. Near names: here.wav"),
        ({"bytes": buffer.getvalue(), "path": "n.wav"}, r"row 3 \(n.wav\) holds NaN or infinity"),
        ({"array": np.zeros((2, 2, 2)), "sampling_rate": 8000}, r"shape \[2, 2, 2\]; expected \[n\]"),
        ({"array": np.zeros(9, np.int64), "sampling_rate": 8000}, "samples are int64; expected int16"),
        ({"array": np.zeros(9)}, "sampling_rate is None; expected samples per second"),
        (np.zeros(9), "samples without their rate. Give {'array': samples, 'sampling_rate': 16000}"),
        (7, "row 3: a sound is a path, {path, bytes} or {array, sampling_rate}; found int"),
    ):
        with pytest.raises(DataError, match=told):
            decode(sound, "row 3")


def test_a_missing_library_names_its_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", chirp(1))
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"soundfile is not installed.\n.*adaptome\[audio\]"):
        decode(path, path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.signal", None)
    with pytest.raises(MissingExtraError, match=r"scipy is not installed"):
        resampled(chirp(1), 8000, 16000)
