"""``python -m polyactor``."""

from polyactor.cli import main

if __name__ == "__main__":
    main()
