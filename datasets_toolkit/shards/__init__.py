"""Data sets on disk: the encoding of every column, tar shards, their index, and where they lie."""
