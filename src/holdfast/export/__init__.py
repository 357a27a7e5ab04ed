"""Models as files of other runtimes, each compared with the model before it takes its place.

Imports nothing here: the process that runs such a file does without torch where the runtime does.
"""
