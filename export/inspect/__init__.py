"""Shows what an exported folder holds: layers, sizes, errors per layer. Reads no weights."""
