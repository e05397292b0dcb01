"""Proves an export: the graph against an independent reference, judged, written down. Builds nothing."""
