"""Small tools that know nothing of images, stores or models."""
