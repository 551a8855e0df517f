"""How answers are made from a model, step by step, where that is more than one forward."""
