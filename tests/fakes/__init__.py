"""Scripted devices, rings and kernels: what the unit tests drive instead of real ones."""
