"""Bandits at work: the log, what is projected from it, decisions and outcomes. No web framework below this line."""
