"""Rows that several examples fill, for language models that are told positions.

Positions begin anew with each example and there is no attention mask: transformers then lets no example see another, with
flash attention by their lengths and else by a mask of blocks. TRL packs them, best fit first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adaptome.core.errors import MissingExtraError
from adaptome.tasks.language import left_padded


def packed(rows: Any, limit: int) -> tuple[Any, str]:
    """Examples [input_ids, labels, ...] as rows of at most `limit` tokens, with their positions; and the note that tells of it.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    try:
        from trl import pack_dataset
    except ImportError as error:
        raise MissingExtraError("trl", "sft") from error
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    lists = {"input_ids": list(rows["input_ids"]), "labels": list(rows["labels"])}
    lists["position_ids"] = [list(range(len(ids))) for ids in lists["input_ids"]]
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        made = pack_dataset(datasets.Dataset.from_dict(lists), limit, "bfd").remove_columns("seq_lengths")
    finally:
        if shown:
            enable_progress_bar()
    lengths = [len(ids) for ids in made["input_ids"]]
    share = sum(lengths) / (limit * len(made))
    told = f"{len(rows)} examples of train were packed into {len(made)} rows of {limit} tokens, {share:.0%} filled."
    return made.add_column("length", lengths), told


def collated(rows: Sequence[dict[str, Any]], pad: int, ignored: int) -> dict[str, Any]:
    """Packed rows -> a batch padded on the left to a multiple of 8; the padding is an example of its own."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    positions: Tensor = left_padded(
        [[*range(width - len(row["position_ids"])), *row["position_ids"]] for row in rows], 0, width
    )
    return {
        "input_ids": left_padded([row["input_ids"] for row in rows], pad, width),
        "labels": left_padded([row["labels"] for row in rows], ignored, width),
        "position_ids": positions,
        "use_cache": False,  # with a cache, transformers does not look for packed rows
    }
