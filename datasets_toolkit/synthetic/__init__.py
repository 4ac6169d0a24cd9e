"""Analytic talking heads: people made of numbers, of whom depth, normals, regions, pose, expression and landmarks are known exactly.

They run on a CPU from a seed, and serve tests, debug experiments, and the comparison of estimates with the truth.
"""

from __future__ import annotations

from datasets_toolkit.synthetic.clip import FPS, SyntheticClip, make_clip, make_clips
from datasets_toolkit.synthetic.dataset import build_synthetic, write_videos
from datasets_toolkit.synthetic.geometry import Pose
from datasets_toolkit.synthetic.person import Person, make_person
from datasets_toolkit.synthetic.render import Picture, render
from datasets_toolkit.synthetic.samples import frame_samples
from datasets_toolkit.synthetic.speech import Speech, speak

__all__ = [
    "FPS",
    "Person",
    "Picture",
    "Pose",
    "Speech",
    "SyntheticClip",
    "build_synthetic",
    "frame_samples",
    "make_clip",
    "make_clips",
    "make_person",
    "render",
    "speak",
    "write_videos",
]
