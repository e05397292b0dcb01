"""Sockets, TLS and HTTP connections, below the application. Knows no model and no route."""
