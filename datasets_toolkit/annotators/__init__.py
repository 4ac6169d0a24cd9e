"""Annotators: what a crop of a face shows. One family a label, one file an annotator, one contract test for all."""

from __future__ import annotations

from datasets_toolkit.annotators.base import Annotator, DepthAnnotator, FaceCrop, NormalAnnotator, Parsing, ParsingAnnotator

__all__ = ["Annotator", "DepthAnnotator", "FaceCrop", "NormalAnnotator", "Parsing", "ParsingAnnotator"]
