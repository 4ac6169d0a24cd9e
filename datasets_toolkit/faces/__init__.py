"""Faces in pictures and videos: found, followed, posed and smoothed."""
