"""Writes bundles on the server: ONNX, OpenVINO and int8 files, held against PyTorch."""
