"""adaptome: parameter-efficient adaptation of foundation models."""

__version__ = "0.1.0"
