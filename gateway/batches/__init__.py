"""Batches: their files, their work through the ordinary routes, their counts. Knows no endpoint."""
