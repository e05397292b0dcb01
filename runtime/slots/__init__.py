"""Layout "slots", for the CPU: keys and values in one row per sequence, written in place."""
