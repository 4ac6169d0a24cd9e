"""From annotations of the toolkit to the records of the model."""
