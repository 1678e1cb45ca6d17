"""``saliency classes``: class model visualisation as a job."""
