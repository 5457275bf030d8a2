"""Detection on files: which there are, how they are read, what is written of each."""
