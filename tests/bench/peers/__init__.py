"""What `cpu_peers.py` consists of: the work, the sides that do it, and the models that they do it with."""
