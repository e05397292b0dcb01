"""Options read from a file, the environment and flags, each declared once. Knows no option."""
