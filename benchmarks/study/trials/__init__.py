"""Changes to Meta-Vote Pruning that were tried, each beside the default on the same targets."""
