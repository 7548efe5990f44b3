"""Formulas as pure functions of tensors."""
