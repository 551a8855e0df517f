"""Faces: where they are in pictures and videos, their crops, and faces that are drawn, true and forged."""
