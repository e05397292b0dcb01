"""The edge of the server: sockets, layers around each request, bodies as they arrive. Knows no endpoint's fields."""
