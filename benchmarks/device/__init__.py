"""Measurements of exported networks on this machine: latency, memory and installed size."""
