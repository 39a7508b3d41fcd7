"""Messages between nodes: the interface, first contact over gRPC, frames over sockets, and memory."""
