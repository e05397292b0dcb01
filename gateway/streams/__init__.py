"""Replies as server-sent events, in the orders that clients need. Knows no engine."""
