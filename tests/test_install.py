"""The hint to install again fits how this package was installed."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from deeprec import _install, doctor
from deeprec._install import install_command
from deeprec.kernels import _library

BEFORE = "pip install scikit-build-core pybind11 && pip install --no-build-isolation "


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that pip noted `origin`, and that the package lies in a site-packages, or beside its sources."""

    def pretend(origin: dict | str | None, beside: Path = tmp_path / "site-packages") -> None:
        class Noted:
            def read_text(self, name: str) -> str | None:
                assert name == "direct_url.json"
                return origin if isinstance(origin, str) or origin is None else json.dumps(origin)

        monkeypatch.setattr(_install, "_BESIDE", beside)
        monkeypatch.setattr(_install.importlib.metadata, "distribution", lambda name: Noted())

    return pretend


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "my [sources]"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "deeprec-torch"\n')
    return folder


@pytest.mark.parametrize("origin", [None, "", "{", "[]", "{}"])
def test_from_the_index_it_is_the_distribution(installed, origin) -> None:
    installed(origin)
    assert install_command("gpu") == "pip install 'deeprec-torch[gpu]'"
    again = "pip install --no-build-isolation --force-reinstall --no-deps deeprec-torch"
    assert install_command(rebuild=True) == again


def test_from_a_folder_it_is_the_folder(installed, sources) -> None:
    noted = {"url": sources.as_uri(), "dir_info": {}}
    installed(noted)
    assert install_command("gpu") == BEFORE + shlex.quote(f"{sources}[gpu]")
    installed({**noted, "dir_info": {"editable": True}})
    assert install_command("gpu") == BEFORE + "-e " + shlex.quote(f"{sources}[gpu]")
    assert "--force-reinstall --no-deps -e" in install_command(rebuild=True)


def test_sources_that_are_only_on_the_path_are_installed_from_where_they_are(installed, sources, monkeypatch) -> None:
    installed(None, beside=sources)
    assert install_command("gpu") == BEFORE + "-e " + shlex.quote(f"{sources}[gpu]")

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_install.importlib.metadata, "distribution", missing)
    assert install_command("gpu") == BEFORE + "-e " + shlex.quote(f"{sources}[gpu]")


def test_a_folder_that_is_gone_or_another_project_is_not_named(installed, sources) -> None:
    (sources / "pyproject.toml").write_text('[project]\nname = "deeprec"\n')
    installed({"url": sources.as_uri(), "dir_info": {}}, beside=sources)
    assert install_command("gpu") == "pip install 'deeprec-torch[gpu]'"


def test_from_an_archive_or_a_repository_it_is_that(installed) -> None:
    installed({"url": "https://example.org/deeprec_torch-1.whl", "archive_info": {}})
    assert install_command("gpu") == "pip install 'deeprec-torch[gpu] @ https://example.org/deeprec_torch-1.whl'"
    installed({"url": "https://example.org/x.git", "vcs_info": {"vcs": "git"}})
    assert install_command("gpu") == "pip install 'deeprec-torch[gpu] @ git+https://example.org/x.git'"


def test_doctor_and_the_operators_say_it(monkeypatch) -> None:
    monkeypatch.setattr(_library, "has_triton", lambda: False)
    assert doctor._triton()["reason"] == f"not installed; {install_command('gpu')}"
    monkeypatch.setattr(_library.torch.cuda, "is_available", lambda: True)
    doctor._operators()  # imports them all
    assert install_command("gpu") in _library.operators()[0]._why_reference("cuda")
    assert install_command(rebuild=True) in _library._load("no_such_library")
