"""What this machine offers and how models share it: cores, memory, the heap. Knows no models."""
