"""`python -m sppnet` is `sppnet`."""

from sppnet.cli.main import main

if __name__ == "__main__":
    main()
