"""A served model: whether it may be served, how calls become engine requests."""
