"""What has been used, by whom, and what it costs: the ledger a server writes and the report read from it."""
