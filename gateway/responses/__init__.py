"""The nouns of the Responses API: items, drafts, records, background runs. Knows no HTTP."""
