"""What was published for DIGINETICA's sixteen cycles, in %: Mi, Lin, Faltings, RecSys 2020 (doublemul/ADER)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables."""

    name: str
    recall_at_20: float
    """Mean of cycles 1 to 16."""
    mrr_at_20: float
    by_cycle: tuple[float, ...] = ()
    """R@20 of cycles 1 to 16; empty where it was not published."""


_DIGINETICA = (
    Published(
        "ADER",
        50.21,
        17.32,
        (
            49.45,
            50.79,
            51.23,
            51.19,
            49.85,
            51.29,
            49.86,
            48.99,
            50.23,
            50.35,
            49.39,
            48.06,
            49.28,
            49.96,
            51.76,
            51.71,
        ),
    ),
    Published(
        "joint",
        50.03,
        17.31,
        (
            49.20,
            50.43,
            51.18,
            51.20,
            50.18,
            50.32,
            49.76,
            49.28,
            50.21,
            49.99,
            49.95,
            47.93,
            48.87,
            49.30,
            50.93,
            51.75,
        ),
    ),
    Published("replay, herding", 49.44, 16.95),
    Published(
        "finetune with dropout",
        49.07,
        16.86,
        (
            49.17,
            50.01,
            49.86,
            49.26,
            48.51,
            49.81,
            48.53,
            47.86,
            49.38,
            49.03,
            48.51,
            46.60,
            48.32,
            49.04,
            50.46,
            50.68,
        ),
    ),
    Published("EWC, no dropout", 47.66, 16.28),
    Published(
        "finetune, no dropout",
        47.28,
        16.01,
        (
            46.30,
            47.95,
            47.64,
            48.36,
            46.89,
            48.01,
            46.05,
            46.14,
            47.53,
            47.62,
            46.87,
            45.24,
            46.28,
            46.88,
            48.70,
            50.08,
        ),
    ),
)


def published(recipe_name: str) -> tuple[Published, ...]:
    """The rows that belong to the log of a recipe of this name (``run.name``); none for other logs."""
    return _DIGINETICA if recipe_name == "diginetica" else ()
