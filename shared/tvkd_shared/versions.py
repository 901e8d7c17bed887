"""Which versions of a package tvkd supports. The range is written once, in the extras of `pyproject.toml`."""

import importlib.metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


def supported(distribution: str) -> SpecifierSet:
    """The versions that the installed tvkd asks for; pre-releases and development builds count as versions too.

    Raises LookupError when tvkd's metadata names no range for this distribution, or tvkd has no metadata.
    """
    for line in importlib.metadata.requires("tvkd") or []:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == canonicalize_name(distribution) and requirement.specifier:
            return SpecifierSet(str(requirement.specifier), prereleases=True)
    raise LookupError(f"the metadata of the installed tvkd names no versions of {distribution}; install tvkd again")
