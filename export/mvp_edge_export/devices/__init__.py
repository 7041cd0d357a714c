"""What a device will make of a network: predicted before anything is copied there."""
