"""The folder of an exported model: made whole or not at all, described, checked, drawn. Computes no weights."""
