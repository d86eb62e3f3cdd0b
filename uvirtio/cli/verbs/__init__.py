"""The verbs, in files named by them. :mod:`uvirtio.cli.app` has the table of verbs and files."""
