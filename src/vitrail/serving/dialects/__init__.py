"""Interfaces that other programs' clients speak, over the same engine: AUTOMATIC1111's and OpenAI's."""
