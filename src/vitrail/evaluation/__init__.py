"""Measuring pictures: prompt hits, memorisation, intervals. It takes pictures, never pipelines."""
