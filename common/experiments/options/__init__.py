"""What is asked on a command line: parsers, values, what options exclude, and the frozen records that travel on."""
