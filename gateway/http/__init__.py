"""The edge of the server: sockets, layers around each request, bodies, deadlines. Knows no endpoint's fields."""
