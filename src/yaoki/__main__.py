"""`python -m yaoki` is `yaoki`."""

from yaoki.cli import main

main()
