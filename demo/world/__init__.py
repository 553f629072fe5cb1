"""Scenes whose every attribute is known: what can be in an image, how it is drawn, how it is described."""
