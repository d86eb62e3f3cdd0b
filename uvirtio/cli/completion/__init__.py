"""Shell completion: what may stand where the cursor is, with the addresses of this machine's devices.

A process of its own answers each press of TAB, so it loads neither typer nor a driver: the verbs and their options
are in :mod:`.table`, which tools/gen-cli writes from the live command line, and the devices come from sysfs. The
scripts beside this file ask with ``_UVIRTIO_COMPLETE`` set; :func:`uvirtio.cli.main` then comes here.
"""
