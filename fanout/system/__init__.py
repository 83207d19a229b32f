"""What a process has of its machine: log lines, a terminal, threads, files, cores and memory."""
