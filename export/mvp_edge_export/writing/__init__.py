"""From a verified network to a bundle (server side: PyTorch, ONNX)."""
