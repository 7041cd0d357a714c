"""What leaves the server: profiles, bundles, runtimes and their measurements.

    *.py, devices/                  the ground floor: file formats, profiles, what is known of devices
    running/, measuring/, remote/   the device's half: run a bundle, time it, here or over ssh
    server/                         writes bundles; needs PyTorch and the `server` extra

A device installs all but what `server/` imports. The ground floor imports neither half, and the
device's half does not import `server/`; `tests/export/test_layout.py` holds both.
"""
