"""Run the `sppnet` command with `python -m sppnet`."""

from sppnet.cli.main import main

if __name__ == "__main__":
    main()
