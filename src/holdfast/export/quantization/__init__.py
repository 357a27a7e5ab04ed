"""Recipes that quantize a model: by torch itself and by torchao, new or as a file says; each is measured."""
