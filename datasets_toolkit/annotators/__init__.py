"""Annotators: what a crop of a face shows. One family a label, one file an annotator, one contract test for all."""

from __future__ import annotations

from datasets_toolkit.annotators.base import (
    Annotator,
    AudioAnnotator,
    DepthAnnotator,
    FaceCrop,
    FrameSound,
    IdentityAnnotator,
    NormalAnnotator,
    Parsing,
    ParsingAnnotator,
    SyncAnnotator,
    SyncScore,
    make_annotator,
)

__all__ = [
    "Annotator",
    "AudioAnnotator",
    "DepthAnnotator",
    "FaceCrop",
    "FrameSound",
    "IdentityAnnotator",
    "NormalAnnotator",
    "Parsing",
    "ParsingAnnotator",
    "SyncAnnotator",
    "SyncScore",
    "make_annotator",
]
