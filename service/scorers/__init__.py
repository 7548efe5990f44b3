"""Scorers: turn the output that a client posts into the reward that a policy learns from."""
