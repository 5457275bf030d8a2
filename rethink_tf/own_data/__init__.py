"""One's own data without writing gin: layout, records, statistics, and the settings they give."""
