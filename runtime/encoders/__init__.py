"""Encoders: manifest, session, queue and thread. Knows no text."""
