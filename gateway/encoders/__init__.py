"""Served encoders: texts become vectors or scores. Knows no HTTP."""
