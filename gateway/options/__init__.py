"""The sections of a server's configuration, and what each means to the part it configures. Opens nothing."""
