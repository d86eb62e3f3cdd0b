"""QEMU's device models without a guest: the ``qemu:`` back end. ``launch`` starts one, ``machine`` talks to it."""
