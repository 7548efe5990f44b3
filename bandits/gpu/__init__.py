"""Scoring on a GPU: cost model, queue, stacked tensors and their mirror of the state."""
