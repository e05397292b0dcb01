"""An independent float32 forward pass in NumPy, to prove graphs against and to calibrate by. Knows no graph."""
