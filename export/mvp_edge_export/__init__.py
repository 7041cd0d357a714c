"""Device profiles and bundles, and everything that runs and measures bundles on devices.

    *.py, devices/                  base modules: file formats, device profiles, latency models
    running/, measuring/, remote/   device modules: run and measure a bundle, here or through ssh
    server/                         server modules: write bundles; need PyTorch and the `server` extra

A device needs none of the packages that only `server/` imports. Base modules do not import device or server
modules, and device modules do not import server modules; `tests/export/test_layout.py` checks this.
"""
