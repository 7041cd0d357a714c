"""What a bundle does on a machine: latency, memory, and what they mean for a profile's budgets."""
