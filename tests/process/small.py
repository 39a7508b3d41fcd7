"""What servers of tests are started with where nothing else is wanted: nine segments of 64 MiB would be zeroed at each
start, half a gigabyte a server that no test is about."""

from paramserver.lab.cluster import ServerOptions

SMALL = ServerOptions(flags=("--segment-bytes", str(4 << 20)))
