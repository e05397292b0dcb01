"""Text that ships with the package, to calibrate and to prove by. Knows no graph."""
