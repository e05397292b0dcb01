"""Structured output on models that were not asked whether they can."""
