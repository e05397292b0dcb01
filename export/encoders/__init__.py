"""Encoders: from a sentence-transformers checkpoint, through optimum's graph, to a proven model folder."""
