"""Layout "padded": graphs that other exporters made, run in padded groups with keys and values copied in and out."""
