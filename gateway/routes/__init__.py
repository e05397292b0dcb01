"""One file per endpoint: body in, engine asked, reply out. Knows no engine internals."""
