"""The command line as `python -m toptune`."""

from toptune.cli.app import main

if __name__ == "__main__":
    main()
