"""Generated protobuf and gRPC stubs; make protos writes them from proto/paramserver/v1."""
