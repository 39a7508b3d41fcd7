"""What each thing that must be done to a byte costs when it is done alone: the terms of the floor."""
