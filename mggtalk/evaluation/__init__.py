"""The benchmark: protocols as data, methods, scores, and reports whose numbers can be traced."""
