"""One loop for whatever is trained, and the runs around it."""
