"""Scenes that the project draws itself, whose every pixel is known by rule."""
