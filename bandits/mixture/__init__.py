"""Mixtures of arms: sample statistics, the planned weights, and the report."""
