"""`ortserve bench`: a load generator for any OpenAI-compatible server. Knows HTTP, never the engine behind it."""
