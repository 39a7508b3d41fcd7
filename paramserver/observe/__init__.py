"""What a server counts and measures of itself."""
