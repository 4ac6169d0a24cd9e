"""Geometry of heads in pure torch: cameras, surfaces seen by them, and the symmetry of faces."""
