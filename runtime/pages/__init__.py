"""Layout "pages", for devices: keys and values in blocks that sequences and the prompt cache share."""
