"""Messages between nodes: the interface, gRPC, and memory."""
