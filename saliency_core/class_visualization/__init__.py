"""Class model visualisation: finds the image for which the score of a class is highest."""
