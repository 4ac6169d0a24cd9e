"""Pretrained networks in plain torch, with weights from files that the user has; and what stands in where there are none."""
