"""Dictionaries that lie on the Hugging Face Hub.

    hf://owner/repo/path/in/repo[@revision]     a file, or a folder's own files; without a path the repository's own
    saelens://release/id[@revision]             what SAELens knows under that name

Downloading, the cache, revisions, tokens and offline mode (HF_HUB_OFFLINE=1) are huggingface_hub's. Configurations come
along with the weights: those beside them, and those in folders above, where a run's configuration may lie.
"""

from __future__ import annotations

import glob
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from dictlab.errors import DictlabError
from dictlab.formats.reading.configs import line

SCHEMES = ("hf://", "saelens://")
CONFIGS = ("*.json", "*.yaml", "*.yml")
NOT_CONFIGS = ("tokenizer*", "vocab*", "*.index.json")  # of a model; they can be large
REGISTRY = "pretrained_saes.yaml"  # in SAELens' package
HARMLESS = ("dataset_path", "model_from_pretrained_kwargs")  # what the registry may say in a configuration's place
LISTED = 12
ABOVE = 3  # folders above a dictionary's whose configurations come along


class Fetched(NamedTuple):
    """A dictionary on this machine.

    Attributes:
        path: Of its file or folder.
        scale: What its inputs are multiplied by, where a registry knows that and the files do not.
    """

    path: Path
    scale: float | None = None


class _Place(NamedTuple):
    """Where on the Hub."""

    asked: str
    repo: str
    path: str
    revision: str | None


def fetched(name: str) -> Fetched:
    """Where a dictionary lies on this machine, downloaded if it has to be. Local paths are what they are.

    Raises:
        DictlabError: The name is not of the form above; there is no such repository, revision, file or release, or no
            access to it; or it is not in the cache and the Hub cannot be reached.
    """
    scheme = next((scheme for scheme in SCHEMES if name.startswith(scheme)), None)
    if scheme is None:
        if "://" in name and not Path(name).exists():
            raise DictlabError(f"{name}: names on a hub begin with {' or '.join(SCHEMES)}.")
        return Fetched(Path(name))
    path, revision = _revision(name, name.removeprefix(scheme))
    if scheme == "saelens://":
        place, scale = _registered(name, path, revision)
        return Fetched(_downloaded(place), scale)
    return Fetched(_downloaded(_place(name, path, revision)))


def _revision(asked: str, path: str) -> tuple[str, str | None]:
    """What follows the last @: a branch, a tag, a commit, or refs/pr/N."""
    path, at, revision = path.rpartition("@") if "@" in path else (path, "", "")
    if at and (not revision or not _inside(revision)):
        raise DictlabError(f"{asked}: {revision!r} is no revision; expected a branch, a tag or a commit behind @.")
    return path, revision or None


def _place(asked: str, path: str, revision: str | None) -> _Place:
    parts = path.rstrip("/").split("/")
    if len(parts) < 2 or not _inside(path.rstrip("/")):
        raise DictlabError(f"{asked}: expected hf://owner/repo/path[@revision], with no '..' or empty part in it.")
    return _Place(asked, "/".join(parts[:2]), "/".join(parts[2:]), revision)


def _inside(path: str) -> bool:
    """Whether every part of a path leads down."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path and path.isprintable()


def _downloaded(place: _Place) -> Path:
    """The file or folder in huggingface_hub's cache.

    A repository can hold thousands of dictionaries: of each folder only its own files are asked for.
    """
    own = glob.escape(place.path)
    if place.path:
        snapshot = _snapshot(place, [own, f"{own}/*"], [f"{own}/*/*"])
    else:
        snapshot = _snapshot(place, ["*"], ["*/*", *NOT_CONFIGS])
    path = snapshot / place.path
    if not path.exists():
        raise DictlabError(f"{place.asked}: no such file or folder in {place.repo}{_alternatives(place, snapshot)}.")
    pinned = place._replace(revision=snapshot.name)  # the commit: all from the same one
    for folder in list(PurePosixPath(place.path).parents)[: ABOVE + path.is_file()]:
        beside = "" if folder == PurePosixPath() else f"{glob.escape(str(folder))}/"
        _snapshot(pinned, [f"{beside}{c}" for c in CONFIGS], [f"{beside}*/*", *(beside + n for n in NOT_CONFIGS)])
    return path


def _snapshot(place: _Place, allow: list[str], ignore: list[str]) -> Path:
    """A commit's folder in the cache, with the files of some patterns in it."""
    from huggingface_hub import errors, logging, snapshot_download

    where = place.repo + (f" at revision {place.revision}" if place.revision else "")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns where a folder has no configurations
    try:
        return Path(
            snapshot_download(place.repo, revision=place.revision, allow_patterns=allow, ignore_patterns=ignore)
        )
    except errors.GatedRepoError as error:
        reason = "is gated: ask for access on its page, then log in with 'hf auth login'"
        raise DictlabError(f"{place.asked}: {where} {reason}.") from error
    except errors.RepositoryNotFoundError as error:
        reason = "there is none of that name, or it is private and needs 'hf auth login'"
        raise DictlabError(f"{place.asked}: the repository {place.repo}: {reason}.") from error
    except errors.RevisionNotFoundError as error:
        raise DictlabError(f"{place.asked}: {place.repo} has no revision {place.revision}.") from error
    except FileNotFoundError as error:  # LocalEntryNotFoundError: not in the cache
        reason = "is not in the cache, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        raise DictlabError(f"{place.asked}: {where} {reason}.") from error
    except Exception as error:  # whatever goes wrong on the way: proxies, certificates, a full disk, ...
        raise DictlabError(f"{place.asked}: {where} cannot be downloaded ({line(error)}).") from error
    finally:
        logging.set_verbosity(verbosity)


def _alternatives(place: _Place, snapshot: Path) -> str:
    """What lies where the wanted file would: asked of the Hub, silent if that fails."""
    from huggingface_hub import HfApi

    folder = str(PurePosixPath(place.path).parent)
    try:
        entries = HfApi().list_repo_tree(
            place.repo, None if folder == "." else folder, recursive=False, revision=snapshot.name
        )
        names = [PurePosixPath(entry.path).name for entry in entries]
    except Exception:  # only the message is poorer
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"; {'it' if folder == '.' else folder} has {', '.join(names[:LISTED])}{more}" if names else ""


def _registered(asked: str, path: str, revision: str | None) -> tuple[_Place, float | None]:
    """What SAELens' registry says of a release and an id."""
    release, _, identity = path.partition("/")
    entry = _of(_registry(asked), release, asked, "release")
    saes = entry.get("saes")
    known = {str(sae.get("id")): sae for sae in saes if isinstance(sae, dict)} if isinstance(saes, list) else {}
    sae = _of(known, identity, asked, "id")
    overrides = entry.get("config_overrides") or {}
    changed = [str(field) for field in overrides if field not in HARMLESS]
    if changed:
        raise DictlabError(
            f"{asked}: SAELens overrides {', '.join(changed)} of its configuration, which is not known here; "
            f"write hf://{entry.get('repo_id')}/{sae.get('path')} to read it as the file has it."
        )
    scale = sae.get("norm_scaling_factor")
    if scale is not None and (type(scale) not in (int, float) or not 0 < scale < float("inf")):
        raise DictlabError(f"{asked}: its norm_scaling_factor in {REGISTRY} is {scale!r}; expected a positive number.")
    return _place(asked, f"{entry.get('repo_id')}/{sae.get('path')}", revision), scale


def _of(entries: Any, name: str, asked: str, kind: str) -> dict[str, Any]:
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        names = list(entries) if isinstance(entries, dict) else []
        listed = ", ".join(map(str, names[:LISTED])) + (f" and {len(names) - LISTED} more" * (len(names) > LISTED))
        raise DictlabError(f"{asked}: SAELens knows no {kind} {name!r} there; expected one of {listed or 'none'}.")
    return entry


def _registry(asked: str) -> Any:
    """SAELens' list of releases, read without importing it."""
    spec = find_spec("sae_lens")
    path = Path(spec.origin).parent / REGISTRY if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise DictlabError(
            f"{asked}: names of SAELens need its list of releases: install sae-lens, or write hf://owner/repo/path."
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # it is large, and this one is five times faster
    try:
        return yaml.load(path.read_text("utf-8"), loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DictlabError(f"{asked}: {path} cannot be read ({line(error)}).") from error
