"""Scenes whose every attribute is known: what can be in a picture, how it is drawn, how it is described."""
