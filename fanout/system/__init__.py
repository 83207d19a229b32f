"""Access to the machine: logs, the terminal, threads, file locks, private files, cores and memory."""
