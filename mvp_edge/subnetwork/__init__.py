"""Sub-networks: what can be cut from a backbone, what is left, what it costs.

weights → subnet → backbone → network; cost, operators → cost_model → budget solves the widths
"""
