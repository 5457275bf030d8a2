"""Data sources, TFRecords, and the input pipeline."""
