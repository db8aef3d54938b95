"""HTTP and WebSocket handlers, one file an area, each with the structs that go in and out."""
