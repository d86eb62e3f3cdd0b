"""Reports: documents of ``uvirtio dump`` and ``uvirtio diag`` as one HTML file that needs nothing else.

Pure functions from documents to text: ``page.page`` draws the devices of a document, ``fleet.fleet`` compares many
machines. Every string of a document is taken for hostile: ``markup`` escapes it, and a page holds no script that
runs.
"""
