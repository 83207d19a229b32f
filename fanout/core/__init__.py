"""The vocabulary of all rooms: errors, records, the job specification, settings, redaction. No I/O."""
