"""Drawn scenes of one object each, whose shape, colours and background are known and can be read back from a picture by rule."""
