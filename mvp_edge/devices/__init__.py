"""Devices, as far as the server is concerned: calibrating their speed, and which device a network fits."""
