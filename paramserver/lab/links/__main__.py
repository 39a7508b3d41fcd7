"""`python -m paramserver.lab.links`: the proxy's process."""

from paramserver.lab.links.proxy import main

main()
