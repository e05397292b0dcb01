"""What the server has done, for operators: metrics, spans, logs. Knows no prompt and no reply."""
