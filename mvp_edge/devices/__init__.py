"""What is found out about devices on the server: calibration, and which device a network suits."""
