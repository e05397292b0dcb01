"""From a row of logits to a token, in NumPy: rules, truncation, one uniform number per position. Knows no sequences."""
