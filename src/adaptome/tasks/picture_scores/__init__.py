"""How generated pictures are scored: by a model's embeddings, by colours, or by a rule of the data. One file each, found by registration.

task: {name: text-to-image, scores: [scenes, {name: clip, model: openai/clip-vit-base-patch32}]}        # in a recipe
"""

from adaptome.tasks.picture_scores.base import Asked, PictureScore, get_score, register_score

__all__ = ["Asked", "PictureScore", "get_score", "register_score"]
