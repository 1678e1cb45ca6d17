"""The configuration of ``saliency classes``."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Self

from pydantic import BeforeValidator, field_validator, model_validator

from jobs.config.job_config import JobConfig, config_field, parse_numbers
from jobs.util import bounds
from saliency_core.class_visualization.ascent_recipe import Recipe

ALL = "all"


class ClassesConfig(JobConfig):
    """The classes to visualise, and the settings of the gradient ascent, which ``Recipe`` describes."""

    classes: tuple[str, ...] = config_field(
        (ALL,),
        "classes to visualise, as numbers or names separated by commas (0,5,tabby), or all",
        group="Images",
        min_length=1,
    )
    steps: int = config_field(Recipe.steps, "number of gradient ascent steps", group="Images")
    learning_rate: float = config_field(
        Recipe.learning_rate, "change of the image in the first step, as root mean square", group="Images"
    )
    l2: float = config_field(
        Recipe.l2, "weight of the sum of squares of the pixels; a higher weight gives a paler image", group="Images"
    )
    lp: Annotated[tuple[float, float], BeforeValidator(parse_numbers)] = config_field(
        Recipe.lp, "power P and weight W of the sum of |pixel|^P, as P,W (6,0.001)", group="Images"
    )
    total_variation: float = config_field(
        Recipe.total_variation, "weight of the total variation; a higher weight gives a flatter image", group="Images"
    )
    jitter: int = config_field(
        Recipe.jitter, "largest random shift of the image in each step, in pixels", group="Images"
    )
    blur_every: int = config_field(Recipe.blur_every, "number of steps between two blurs; 0 for none", group="Images")
    blur_sigma: float = config_field(
        Recipe.blur_sigma, "standard deviation of the Gaussian blur, in pixels", group="Images"
    )
    seed: int = config_field(0, "seed of the random shifts", group="Images", ge=0, le=bounds.SEED)

    @field_validator("classes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str | int):
            value = str(value).split(",")
        return tuple(str(name).strip() for name in value) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _whole_recipe(self) -> Self:
        self.recipe()
        return self

    def recipe(self) -> Recipe:
        """Returns the settings of the ascent. Raises ValueError if they cannot lead to an image."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})
