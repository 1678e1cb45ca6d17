"""Small tools that do not depend on images, stores or models."""
