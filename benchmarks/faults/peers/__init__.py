"""The same drill for ours and for peers: a server killed or paused, a worker killed, while workers count.

    python -m benchmarks.faults.peers --out benchmarks/results/faults_peers.json

Each peer is a short adapter: one file that starts it and knows its processes, one (`*_node`) that is the training
script as its documentation would have it written.
"""
