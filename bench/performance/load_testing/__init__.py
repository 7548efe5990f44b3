"""Load on the running service, beside the least that its stack of software can do."""
