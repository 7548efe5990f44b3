"""Embedders: turn text and images into the float32 vectors that policies use; and the queue in front of them."""
