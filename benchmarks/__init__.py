"""Experiments with mvp-edge: studies, timings and the evidence that follows from them."""
