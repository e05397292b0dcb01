"""What endpoints answer, as JSON. Knows no socket and no frame: values are filled in by whoever answers."""
