"""`python -m yaoki` is `yaoki`."""

from yaoki.cli.main import main

main()
