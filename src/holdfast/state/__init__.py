"""The waist: nested dicts and lists of tensors and plain values, with typed paths. No torch at import."""
