"""What a network is fed, to look at: pictures of its batches, statistics of its data, faults."""
