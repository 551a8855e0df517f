"""Sounds made here: tones and chirps, in the layouts of known data sets; and models small enough for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RATE = 8000
CLASSES = ("down", "up")
AST = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_length": 64,
    "num_mel_bins": 32,
}
WAV2VEC2 = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_stride": [10, 8],
    "conv_kernel": [20, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}


def chirp(kind: int, seed: int = 0, samples: int = 3200, rate: int = RATE) -> np.ndarray:
    """A tone whose pitch falls (0) or rises (1) by 1,500 Hz, from a start drawn from `seed`."""
    low = 300 + 500 * np.random.default_rng(seed).random()
    t = np.arange(samples) / rate
    half = 1500 / t[-1] / 2
    phase = (low + (0 if kind else 1500)) * t + (half if kind else -half) * t * t
    return (0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> str:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return str(path)


def class_folders(folder: Path, each: int = 6, first: int = 0, ending: str = "wav") -> str:
    """`folder/down/0.wav`, `folder/up/0.wav`, ..."""
    for kind, name in enumerate(CLASSES):
        for i in range(first, first + each):
            write(folder / name / f"{i}.{ending}", chirp(kind, seed=i))
    return str(folder)


def esc50(folder: Path, each: int = 2) -> str:
    """ESC-50's layout: meta/esc50.csv and audio/*.wav, 5 folds of `each` clips a class; returns the table's path."""
    rows = ["filename,fold,target,category"]
    for fold in range(1, 6):
        for kind, name in enumerate(CLASSES):
            for i in range(each):
                file = f"{fold}-{i}-A-{kind}.wav"
                write(folder / "audio" / file, chirp(kind, seed=10 * fold + i))
                rows.append(f"{file},{fold},{kind},{name}")
    return _table(folder / "meta" / "esc50.csv", rows)


def urbansound8k(folder: Path, folds: int = 3, each: int = 3) -> str:
    """UrbanSound8K's layout: metadata/UrbanSound8K.csv and audio/fold*/*.wav."""
    rows = ["slice_file_name,fsID,fold,classID,class"]
    for fold in range(1, folds + 1):
        for kind, name in enumerate(CLASSES):
            for i in range(each):
                file = f"{fold}{i}-{kind}-0-0.wav"
                write(folder / "audio" / f"fold{fold}" / file, chirp(kind, seed=10 * fold + i))
                rows.append(f"{file},{fold}{i},{fold},{kind},{name}")
    return _table(folder / "metadata" / "UrbanSound8K.csv", rows)


def _table(path: Path, rows: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def archive(path: Path, kinds: list[int], **extra: Any) -> str:
    """An .npz of chirps as int16 samples and offsets, for every split of one list of classes."""
    made: dict[str, Any] = {"sample_rate": RATE, "classes": list(CLASSES), **extra}
    for split in ("train", "validation"):
        clips = [(chirp(kind, seed=i) * 32767).astype(np.int16) for i, kind in enumerate(kinds)]
        made[f"{split}_samples"] = np.concatenate(clips)
        made[f"{split}_offsets"] = np.cumsum([0, *map(len, clips)])
        made[f"{split}_y"] = np.array(kinds)
    np.savez(path, **made)
    return str(path)
