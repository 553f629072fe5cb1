"""Small models of many families, from ComfyUI's own classes, with random weights: what the tests run on."""
