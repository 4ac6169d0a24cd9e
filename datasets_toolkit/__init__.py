"""Tools that turn folders of monocular talking-face videos into curated, documented training shards.

The package stands alone: it reads and writes videos, runs the face tracker and the annotators, and packs shards. MGGTalk uses the
same tracker and annotators at inference, so that training and inference cannot drift apart.
"""

from __future__ import annotations

__version__ = "0.1.0"
