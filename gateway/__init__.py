"""The HTTP side: OpenAI-style routes, prompts and text, the command line. Knows the runtime only through its Driver."""
