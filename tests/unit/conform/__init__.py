"""The tests of devices: each row with a scripted device that obeys, and one that breaks that row."""
