"""Rewards regressed on prompts: ridge and kernel estimators, and the upper confidence rules built on them."""
