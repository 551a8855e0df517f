"""Data: tasks made on the spot."""
