"""Ways to better Meta-Vote Pruning (`python -m benchmarks.trials PLAN`)."""
