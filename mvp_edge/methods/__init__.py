"""The pruning methods, one a file: each is a function that takes a `Problem` and returns a `Pruned` network.

`catalogue` lists them by name, with the recipe that each is run with.
"""
