"""Steps of the shipped profiles' training, and experiments of the decisions: ``python -m perigee.training.recipes.NAME``.

Model cards and decisions name the recipe that they used. Each has a ``--help``.
"""
