"""What bench/performance/gpu.py measures: ceilings of a device, the stack against them, and its answers against float64."""
