"""What `under_load` asks a server, and how. Needs ortserve and what that needs, nothing else."""
