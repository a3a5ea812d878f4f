"""Published annotation files to region records."""
