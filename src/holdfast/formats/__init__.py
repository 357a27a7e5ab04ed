"""Containers: reader and writer of one format in one file. No tensors here: documents, segments, bytes."""
