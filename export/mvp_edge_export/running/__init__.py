"""What runs a bundle on a device: sessions of the runtimes, predictions, checks of the machine."""
