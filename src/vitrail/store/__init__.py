"""Models on disk, and where pictures go."""
