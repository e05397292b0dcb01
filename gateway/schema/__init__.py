"""What requests say: bodies read into checked values, with OpenAI's error messages. Knows no model and no reply."""
