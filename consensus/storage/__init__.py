"""The shared write-ahead log, snapshots and the filesystem seam."""
