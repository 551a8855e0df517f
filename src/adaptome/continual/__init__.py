"""Continual learning: tasks that arrive one after another, what is kept between them, and what is forgotten.

    continual:                                           # in a recipe; `adaptome continual RECIPE` carries it out
      stream: {by: labels, size: 2}
      strategy: {name: replay, budget: 40}

A stream cuts data into tasks (`continual.stream`), a strategy says what is minimised in each and what is kept from it
(`continual.strategies`, one file each), and the matrix R[i, j] of scores gives the measures (`continual.scores`).
"""

from adaptome.continual.scores import measures
from adaptome.continual.strategy import Strategy, get_strategy, register_strategy, strategies
from adaptome.continual.stream import Part, Stream

__all__ = ["Part", "Strategy", "Stream", "get_strategy", "measures", "register_strategy", "strategies"]
