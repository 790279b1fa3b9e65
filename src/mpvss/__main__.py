"""``python -m mpvss``: the command line."""

from mpvss.cli.app import main

if __name__ == "__main__":
    main()
