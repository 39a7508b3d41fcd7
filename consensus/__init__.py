"""Generic replication: knows bytes and never tensors, and imports nothing of paramserver or worker."""
