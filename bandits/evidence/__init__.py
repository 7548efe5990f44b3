"""Hierarchical Bayesian regression over all arms, with every scale set by the evidence: what `auto` estimates with."""
