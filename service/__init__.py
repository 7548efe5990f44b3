"""The service: HTTP, logs, embedders - everything that has effects. The mathematics is in `bandits`."""
