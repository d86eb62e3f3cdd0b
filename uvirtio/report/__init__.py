"""Reports: documents of ``uvirtio dump`` and ``uvirtio diag`` as one HTML file that needs nothing else.

Pure functions from documents to text. Every string of a document is taken for hostile: ``markup`` escapes it, and
a page holds no script that runs.
"""

from uvirtio.report.documents import embedded
from uvirtio.report.page import page

__all__ = ["embedded", "page"]
