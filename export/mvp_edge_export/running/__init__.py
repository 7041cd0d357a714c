"""Runs a bundle on a device: sessions of the runtimes, predictions, and checks of the machine."""
