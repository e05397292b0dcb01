"""What the served API takes: every request field with its verdict. Read by requests, the documentation and tests."""
