"""One file per model family, holding only what differs from the common decoder."""
