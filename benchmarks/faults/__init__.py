"""Claims about faults: what a cluster of ours, and its peers, lose and how long they stand still."""
