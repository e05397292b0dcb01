"""Drafts: asked for in time, as long as pays, verified without changing a token. Knows drafters by contract only."""
