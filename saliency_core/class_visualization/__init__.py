"""Class model visualisation: the image that a class scores highest on."""
