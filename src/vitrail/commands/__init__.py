"""One file per sub-command of ``vitrail``; :mod:`vitrail.cli` picks and starts them."""
