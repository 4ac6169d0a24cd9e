"""Speech drives the face: the driver, what sound does not say, and the files of both."""
