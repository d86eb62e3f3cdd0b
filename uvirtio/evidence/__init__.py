"""Evidence that travels: all that is known of a device as one document, read from many forms of dump.

``collect`` makes the document of a device, ``files`` reads it, and what other tools write, back; ``difference``
compares two devices and ``explain`` says what a word, a code or a finding means. ``schema.json`` is the published
schema of the document (JSON Schema, 2020-12).
"""
