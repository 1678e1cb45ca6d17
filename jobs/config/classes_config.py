"""``saliency classes``: its configuration."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Self

from pydantic import BeforeValidator, field_validator, model_validator

from jobs.config.job_config import JobConfig, config_field, parse_numbers
from jobs.util import bounds
from saliency_core.class_visualization.ascent_recipe import Recipe

ALL = "all"


class ClassesConfig(JobConfig):
    """Of which classes images are sought, and how; see ``Recipe``."""

    classes: tuple[str, ...] = config_field(
        (ALL,), "numbers or names, as 0,5,tabby; or all", group="Images", min_length=1
    )
    steps: int = config_field(Recipe.steps, "of the ascent", group="Images")
    learning_rate: float = config_field(
        Recipe.learning_rate, "how much the first step changes the image (root mean square)", group="Images"
    )
    l2: float = config_field(Recipe.l2, "weight of the sum of squares: the higher, the paler", group="Images")
    lp: Annotated[tuple[float, float], BeforeValidator(parse_numbers)] = config_field(
        Recipe.lp, "power P and weight W of the sum of |pixel|^P, as 6,0.001", group="Images"
    )
    total_variation: float = config_field(Recipe.total_variation, "its weight: the higher, the flatter", group="Images")
    jitter: int = config_field(
        Recipe.jitter, "pixels by which the image is shifted at random, at each step", group="Images"
    )
    blur_every: int = config_field(Recipe.blur_every, "steps between two blurs; 0: never", group="Images")
    blur_sigma: float = config_field(Recipe.blur_sigma, "of the Gaussian, in pixels", group="Images")
    seed: int = config_field(0, "of the jitter", group="Images", ge=0, le=bounds.SEED)

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
        """ValueError where it leads to no image."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})
