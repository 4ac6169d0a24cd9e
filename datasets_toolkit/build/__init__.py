"""From source videos to a data set: the steps of a build, the engines that run them, and what changes a data set later."""
