"""Devices: what stands in the way of running on one, and how long a network takes there."""
