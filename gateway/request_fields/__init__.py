"""What each endpoint takes: every field of every body and query with its verdict. Requests are checked with it."""
