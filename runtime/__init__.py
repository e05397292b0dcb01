"""In-process inference on ONNX Runtime: token ids in, token ids out. Knows no text and no HTTP."""
