"""Pictures with captions: where they come from, how they are checked, varied and streamed to training."""
