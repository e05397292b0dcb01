"""Turns Hugging Face checkpoints into quantized ONNX graphs with KV inputs and outputs. Knows no server."""
