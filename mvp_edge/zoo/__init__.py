"""The zoo of pruned networks, and which of its tasks are similar to a new one.

wordnet → synsets → similarity; entries → build, neighbours
"""
