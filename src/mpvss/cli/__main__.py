"""``python -m mpvss.cli``: the command line."""

from mpvss.cli import main

if __name__ == "__main__":
    main()
