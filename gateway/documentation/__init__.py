"""The served API described, as OpenAPI, HTML and Markdown: from the tables and structs that requests pass through."""
