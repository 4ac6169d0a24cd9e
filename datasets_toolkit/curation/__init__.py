"""Which clips a data set keeps and into which split they go, before anything is packed, and numbers and pages about it."""
