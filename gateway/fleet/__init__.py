"""The models of one server: opened, found by name, changed while it runs, and started again when one fails."""
