"""One module a command: its part of the parser, and what runs it. Heavy imports come when a command runs."""
