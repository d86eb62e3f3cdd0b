"""Shell completion: the words that fit at the cursor, with the addresses of this machine's devices.

Each press of TAB starts a process, so it loads neither typer nor a driver: the verbs and their options are in
``table``, which tools/gen-cli writes from the command line itself, and the devices come from sysfs. The scripts
beside this file set ``_UVIRTIO_COMPLETE``; ``uvirtio.cli.main`` then calls ``answer``.
"""
