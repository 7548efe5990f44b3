"""`nextarm report`: what a bandit did, earned and cost so far, by its own log.

log --log_reader--> History --bandits.evaluation.retrospective--> Report --> text, JSON, page with plots
"""
