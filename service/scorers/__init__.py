"""Scorers: from the output that a client posts to the reward that a policy learns from."""
