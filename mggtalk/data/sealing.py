"""When lips close for p, b and m: what an :class:`AudioNetwork` closes them by, learnt from closures that are heard and seen.

Letters: X the regressors of the clips that were understood (``AudioNetwork.design``); y 1 where p, b or m is heard and the tracked lips are
closed, else 0; p what ridge regression foretells of it. g grows from 0 at the ``BEGIN`` quantile of p over their speech to 1 at ``END``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.data.agreement import design_of, ridge
from mggtalk.data.speech_clips import SpeechClip
from mggtalk.metrics.speech import closed_level
from mggtalk.modules.audio import AudioNetwork

log = logging.getLogger(__name__)
BEGIN, END = 0.85, 0.97


def set_seal(clips: Sequence[SpeechClip], network: AudioNetwork) -> None:
    """Set the network's seal, if it has one; it stays open where no closure was heard and seen, which the log says.

    Args:
        clips: of training, whose sound is in time.
        network: whose front has been fitted to them.
    """
    known = [clip for clip in clips if bool(clip.understood)]
    count = sum(float(sealed(clip).sum()) for clip in known)
    log.info("lips are heard and seen to close in %.0f frames of the %d clips that were understood", count, len(known))
    if network.seal is None or not count:
        return
    design = torch.cat([design_of(clip, network) for clip in known])
    wanted, mean = torch.cat([sealed(clip) for clip in known]).double()[:, None], design.mean(0)
    weights = ridge(design - mean, wanted - wanted.mean())[:, 0]
    speech = torch.cat([clip.features[:, -1] for clip in known]) > 0.5
    told = (design - mean) @ weights
    begin, end = torch.quantile(told[speech], told.new_tensor([BEGIN, END])).tolist()
    network.seal.copy_(weights / (end - begin))
    network.seal_bias.copy_((-mean @ weights - begin) / (end - begin))


def sealed(clip: SpeechClip) -> Float[Tensor, " t"]:
    """1 where p, b or m is heard and the tracked lips are closed, else 0."""
    return clip.bilabial * (clip.opening <= closed_level(clip.opening))
