"""The checker behind the import hook of conftest.py: beartype, with an int accepted where a float is annotated."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
