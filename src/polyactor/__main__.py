"""The command line, started as ``python -m polyactor``."""

from polyactor.cli.main import main

if __name__ == "__main__":
    main()
