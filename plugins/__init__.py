"""Import path of plugin authors: prompt caches and speculative drafters. Knows no runtime, no model, no text."""
