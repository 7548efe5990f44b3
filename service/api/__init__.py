"""The HTTP surface: requests are admitted, parsed, checked and answered here; what they mean is decided in the engine."""
