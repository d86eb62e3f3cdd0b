"""Tools of the tests: compiling a C program, watching memory with hardware watchpoints."""
