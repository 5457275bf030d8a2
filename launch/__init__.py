"""Starts runs elsewhere: builds jobs and runs workers. Imports neither TensorFlow nor models."""
