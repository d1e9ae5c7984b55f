"""Random numbers that are the same in every process and in a resumed run."""
