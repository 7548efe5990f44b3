"""Bandit policies for choosing among generative models: pure functions of tensors, without HTTP, clock or global randomness."""
