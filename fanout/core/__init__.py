"""The words that all rooms share: errors, records, what a run asks for, settings. No input or output."""
