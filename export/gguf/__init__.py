"""Reads GGUF files as checkpoints: header, names, tensors, tokenizer. Knows no graph."""
