"""PEP 517 build backend: setuptools, with the torch that is already installed where the package will go.

An isolated build sees an empty environment, yet an extension module fits only the torch it was compiled against. So
this backend puts the target environment's own torch on the path, and asks for one to be fetched only if there is none.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401  (hooks that need no torch)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

TORCH_REQUIREMENT = "torch>=2.11"
ConfigSettings = dict[str, Any] | None


def _site_folders() -> list[Path]:
    """Where the target environment keeps its packages, nearest first."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    settings = Path(sys.prefix, "pyvenv.cfg")
    in_environment = settings.is_file()
    if in_environment and "include-system-site-packages = true" in settings.read_text():
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        folders += [sysconfig.get_path("purelib", vars=base), sysconfig.get_path("platlib", vars=base)]
        folders += site.getsitepackages([sys.base_prefix])
    if not in_environment:
        folders += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(folder) for folder in dict.fromkeys(folders)]


def installed_torch() -> Path | None:
    """The site-packages folder that holds the target environment's torch, or None."""
    for folder in [*map(Path, filter(None, sys.path)), *_site_folders()]:
        if Path(folder, "torch", "version.py").is_file():
            return folder
    return None


def _expose_torch() -> None:
    """Make `import torch` work here, behind the isolated packages."""
    folder = installed_torch()
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _torch_requirement() -> list[str]:
    return [] if installed_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_torch_requirement()]


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    _expose_torch()
    return _setuptools.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    _expose_torch()
    return _setuptools.build_editable(wheel_directory, config_settings, metadata_directory)
