"""Embedders: from a text that a client sends to the float32 vector that a policy sees; and the queue in front of them."""
