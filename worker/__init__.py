"""What training code runs; also reachable as paramserver.connect."""
