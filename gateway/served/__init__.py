"""A served model: what it is called, whether it may be served, how calls become engine requests."""
