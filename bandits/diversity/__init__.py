"""Diversity of outputs given prompts: DAK-UCB's statistics and histories."""
