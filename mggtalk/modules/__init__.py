"""The networks of MGGTalk: every one a zero-initialised correction of a base value that is right without training."""
