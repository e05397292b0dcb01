"""Formats in which models write tool calls: recognised in the template, read piece by piece. Knows no wire format."""
