"""What gives an engine its thread and callers a door. Knows no tensors."""
