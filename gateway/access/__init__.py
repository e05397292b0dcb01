"""Who may use the server, for what, and how much: keys, their file, and what they grant."""
