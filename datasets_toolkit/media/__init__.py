"""Pictures, videos and sound: read with their true times, written whole."""
