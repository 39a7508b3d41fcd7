"""What we are compared with; in processes of an environment of their own (`make install-peers`)."""
