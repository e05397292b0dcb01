"""What the server keeps between requests: responses, conversations, completions, files, batches. Knows no model."""
