"""Builds the graph of a decoder, weights streamed on the way. Decides no precision."""
