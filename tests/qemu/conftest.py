"""What holds for the whole floor: the ways in that a test took are in its report."""

from tests.cells import cells_are_noted  # noqa: F401  # a fixture, found by its name here
