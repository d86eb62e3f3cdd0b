"""This machine: where its kernel shows itself, what may be touched, and how it is read and written.

Every file of ``/sys`` and ``/proc`` is parsed in one place, here; the other rooms ask, and open none themselves.
"""
