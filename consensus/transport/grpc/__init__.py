"""First contact of two nodes, over grpc.aio; what they say then travels on sockets of their own."""
