"""What a detector gets wrong, and what each kind of error costs: analysis of COCO results."""
