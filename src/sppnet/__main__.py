"""`python -m sppnet` is `sppnet`."""

from sppnet.cli import main

if __name__ == "__main__":
    main()
