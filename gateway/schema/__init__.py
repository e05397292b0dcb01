"""Shapes of the OpenAI wire format: requests read with OpenAI's error messages, replies as typed structs."""
