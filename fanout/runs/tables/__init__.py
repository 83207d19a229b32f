"""The outcomes of a run as a table: its columns, their types, and the files that hold it."""
