"""Commands of their own, each with its parser; `cli.py` hooks them in."""
