"""The engine that runs requests, and the one step that saves a picture."""
