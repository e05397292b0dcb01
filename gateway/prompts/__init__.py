"""From conversations and texts to token ids: templates, tokenizer, marks of the prompt cache. Knows no reply."""
