"""What optimum exports for us, in a process and an environment of its own: graphs that have no builder here."""
