"""Decides how each product is stored and rounded: plan, calibration, measured sensitivity. Builds no nodes."""
