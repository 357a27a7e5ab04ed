"""Runs inside the training loops of others: Lightning, Accelerate, transformers and Ignite, each in a file of its own.

A file imports its framework, which is no dependency of holdfast: ``from holdfast.integrations.lightning import ...``.
"""
