"""The Redis store: one stream per bandit, shared by any number of replicas."""
