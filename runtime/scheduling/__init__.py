"""What each step computes and for whom: queue, rows, blocks, cached prefixes. Knows no tensors and draws nothing."""
