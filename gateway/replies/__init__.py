"""From a sequence's tokens to a reply: text, channels, calls, log-probabilities, counts. Knows no HTTP."""
