"""Sub-networks: what can be cut from a backbone, what is left, what it costs.

units → weights, cost → backbone → subnet → network; budget solves the widths
"""
