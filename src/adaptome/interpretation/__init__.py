"""What an adapter changed, told in heads, directions and texts.

    from adaptome.interpretation import interpret, text_space
    print(interpret(model))                                          # the most changed attention heads and directions
    print(interpret(clip, space=text_space(clip, tokenizer, texts))) # and the texts that those directions point at

Works for every method that changes weights; CLIP-SVD's directions are the base's own singular vectors.
"""

from adaptome.interpretation.blocks import BlockTold, blocks_told
from adaptome.interpretation.directions import DirectionChange, direction_changes
from adaptome.interpretation.heads import HeadChange, head_changes, read_labels
from adaptome.interpretation.summary import Interpretation, interpret
from adaptome.interpretation.texts import TextSpace, describe, text_space

__all__ = [
    "BlockTold",
    "DirectionChange",
    "HeadChange",
    "Interpretation",
    "TextSpace",
    "blocks_told",
    "describe",
    "direction_changes",
    "head_changes",
    "interpret",
    "read_labels",
    "text_space",
]
