"""What checks every annotation while the tests run: beartype, with integers welcome where floats are asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
