import common  # noqa: F401  sets the environment that torch reads when its threads start
