"""The engine: a bandit's log, its projection, decisions and outcomes. No web framework at or below this layer."""
