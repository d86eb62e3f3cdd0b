"""What tools/bench measures: each module is one path, and says what it is compared with in the same run."""
