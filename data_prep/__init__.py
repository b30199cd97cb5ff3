"""Corpus preparation, run from a checkout: `python -m data_prep.esc50 --help`, or `data_prep.folder`."""
