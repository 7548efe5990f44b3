"""Where logs and snapshots live."""
