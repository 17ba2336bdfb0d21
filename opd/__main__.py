"""`python -m opd COMMAND …`, as `opd COMMAND …`."""

from opd.console import main

if __name__ == "__main__":
    main()
